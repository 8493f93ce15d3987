"""Jobs of any length, in constant memory, from and to disk."""
