"""Methods: what one training step does with a batch."""

METHODS = {
    "adversarial": "robustcords.methods.adversarial:AdversarialTraining",
}
