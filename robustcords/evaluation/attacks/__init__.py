"""Attacks that evaluation makes: they say which images a finished model withstands them on."""

EVALUATION_ATTACKS = {
    "autoattack": "robustcords.evaluation.attacks.autoattack:AutoAttack",
    "cw": "robustcords.evaluation.attacks.cw:CarliniWagner",
    "pgd": "robustcords.evaluation.attacks.pgd:RestartedPGD",
}
