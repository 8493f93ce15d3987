"""How fast things run, and how close that is to the machine's limit."""
