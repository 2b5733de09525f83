"""What looks on after every epoch."""
