"""Requests of many callers, merged into batches."""
