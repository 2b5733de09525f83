"""Training attacks: each searches the threat's ball for the perturbation with the highest objective."""

ATTACKS = {
    "atas": "robustcords.attacks.atas:ATAS",
    "fgsm": "robustcords.attacks.fgsm:FGSM",
    "kim": "robustcords.attacks.kim:Kim",
    "n_fgsm": "robustcords.attacks.n_fgsm:NFGSM",
    "pgd": "robustcords.attacks.pgd:PGD",
}
