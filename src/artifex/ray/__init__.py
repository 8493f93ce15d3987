"""Jobs and servers on many machines, with Ray."""
