"""Threat models: the perturbations that an adversary may add to an image."""

THREATS = {
    "l0": "robustcords.threats.l0:L0",
    "l1": "robustcords.threats.l1:L1",
    "l2": "robustcords.threats.l2:L2",
    "linf": "robustcords.threats.linf:Linf",
}
