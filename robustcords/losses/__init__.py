"""Losses: per example, of clean and adversarial logits."""

LOSSES = {
    "grad_align": "robustcords.losses.grad_align:GradAlign",
    "mart": "robustcords.losses.mart:MART",
    "nuat": "robustcords.losses.nuat:NuAT",
    "sat": "robustcords.losses.sat:SAT",
    "standard": "robustcords.losses.standard:Standard",
    "trades": "robustcords.losses.trades:TRADES",
}
