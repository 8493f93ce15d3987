"""What requests mean, whatever protocol they come by."""
