"""Evaluation of a finished model: clean and robust accuracy."""
