"""Attacks: they look for the perturbation that a given objective is highest at."""

ATTACKS = {
    "atas": "robustcords.attacks.atas:ATAS",
    "fgsm": "robustcords.attacks.fgsm:FGSM",
    "kim": "robustcords.attacks.kim:Kim",
    "n_fgsm": "robustcords.attacks.n_fgsm:NFGSM",
    "pgd": "robustcords.attacks.pgd:PGD",
}
