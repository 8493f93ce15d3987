"""Pages and documents that describe the server."""
