"""Whether gradients are masked."""
