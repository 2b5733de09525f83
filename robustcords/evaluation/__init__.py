"""What a finished model withstands."""
