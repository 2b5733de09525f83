"""What an adversary may do."""
