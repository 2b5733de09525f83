"""Losses: unreduced, of clean and adversarial logits."""

LOSSES = {
    "mart": "robustcords.losses.mart:MART",
    "sat": "robustcords.losses.sat:SAT",
    "standard": "robustcords.losses.standard:Standard",
    "trades": "robustcords.losses.trades:TRADES",
}
