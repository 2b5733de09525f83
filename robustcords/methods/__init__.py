"""Methods: what one training step does with a batch."""

METHODS = {
    "adversarial": "robustcords.methods.adversarial:AdversarialTraining",
    "awp": "robustcords.methods.awp:AWP",
    "fast_bat": "robustcords.methods.fast_bat:FastBAT",
    "free": "robustcords.methods.free:Free",
}
