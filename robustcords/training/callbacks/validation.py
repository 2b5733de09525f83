"""Validation: accuracy on held-out images, and the weights that did best on them."""

from __future__ import annotations

from typing import Any

from robustcords.attacks.base import Attack
from robustcords.data.images import Images
from robustcords.evaluation.evaluate import robust_accuracy
from robustcords.evaluation.majority import validation_warning
from robustcords.training.callbacks.base import Callback, EpochEnd


class Validation(Callback):
    """Measures clean and robust accuracy on a validation split, and keeps the weights that are the most robust.

    Args:
        images: the validation split.
        attack: what robust accuracy is measured with, such as PGD-10 at the training radius.
        every: epochs between validations; the last epoch always has one.

    Attributes:
        best: the highest robust accuracy so far, or None.

    Example:
        >>> Validation(held_out, PGD(threat, steps=10), every=5)
    """

    name = "validation"

    def __init__(self, images: Images, attack: Attack, every: int = 1) -> None:
        super().__init__()
        self.images, self.attack, self.every = images, attack, every
        self.best: float | None = None

    def due(self, epoch: int, *, last: bool) -> bool:
        """Returns whether it is time for a validation."""
        return last or (epoch + 1) % self.every == 0

    def after_epoch(self, end: EpochEnd) -> dict[str, float]:
        """Returns ``clean`` and ``robust`` accuracy as fractions, and has the best weights written."""
        clean, robust = robust_accuracy(end.result, self.images, self.attack, seed=end.seed, autocast=end.autocast)
        if self.best is None or robust > self.best:
            self.best = robust
            if text := validation_warning(clean, self.images.labels):
                end.display.say_once("largest class", text)
            end.save_weights("best")
        return {"clean": clean, "robust": robust}

    def state_dict(self) -> dict[str, Any]:
        """Returns the best accuracy so far."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.best = state["best"]
