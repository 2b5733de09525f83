"""Attacks: they look for the perturbation that a given objective is highest at."""

ATTACKS = {
    "fgsm": "robustcords.attacks.fgsm:FGSM",
    "pgd": "robustcords.attacks.pgd:PGD",
}
