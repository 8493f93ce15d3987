"""The fastest way to run an endpoint, found by measuring."""
