"""What the server tells of itself: events and metrics."""
