"""The subset that an epoch trains on."""
