"""One module for each command's work."""
