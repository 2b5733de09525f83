"""Evaluation attacks: each reports which images a finished model classifies correctly under it."""

EVALUATION_ATTACKS = {
    "autoattack": "robustcords.evaluation.attacks.autoattack:AutoAttack",
    "cw": "robustcords.evaluation.attacks.cw:CarliniWagner",
    "pgd": "robustcords.evaluation.attacks.pgd:RestartedPGD",
}
