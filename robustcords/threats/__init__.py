"""Threats: what an adversary may do to an image."""

THREATS = {
    "l2": "robustcords.threats.l2:L2",
    "linf": "robustcords.threats.linf:Linf",
}
