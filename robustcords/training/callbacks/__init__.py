"""Callbacks: reactions to training steps and epochs."""

CALLBACKS = {
    "dynamics": "robustcords.training.callbacks.dynamics:Dynamics",
    "overfitting": "robustcords.training.callbacks.overfitting:OverfittingProbe",
}
