"""Last-layer gradients of adversarial examples."""
