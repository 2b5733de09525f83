"""From gradients to a choice."""
