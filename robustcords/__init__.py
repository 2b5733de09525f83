"""Adversarial training on small, periodically re-selected subsets."""

__version__ = "0.1.0"
