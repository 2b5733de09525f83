"""What one step does with a batch."""
