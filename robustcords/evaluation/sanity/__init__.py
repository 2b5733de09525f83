"""Checks for masked gradients."""
