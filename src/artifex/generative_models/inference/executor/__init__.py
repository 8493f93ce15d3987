"""The executor: everything that compiles, pads, shards, places and transfers."""
