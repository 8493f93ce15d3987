"""Samplers, a file each: pure functions from a scheduler's settings and a number of steps to a table."""
