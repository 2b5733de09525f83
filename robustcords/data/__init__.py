"""Data sets: decoded once, kept as uint8."""

DATA = {
    "digits": "robustcords.data.digits:Digits",
}
