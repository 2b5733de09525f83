"""A run's results, for programs and for people."""
