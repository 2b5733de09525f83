"""Solvers: from gradients to a weighted subset."""
