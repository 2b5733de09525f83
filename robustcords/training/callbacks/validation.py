"""Validation: accuracy on held-out images, and the best weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
        planned: gives another attack to measure with each time, such as an effort's, or None; None for never.

    Attributes:
        best: the highest robust accuracy so far, or None.

    Example:
        >>> callbacks = [Validation(held_out, PGD(threat, steps=10), every=5)]
    """

    name = "validation"
    measurable = True

    def __init__(
        self, images: Images, attack: Attack, every: int = 1, planned: Callable[[], Attack | None] | None = None
    ) -> None:
        super().__init__()
        self.images, self.attack, self.every, self.planned = images, attack, every, planned
        self.best: float | None = None

    def due(self, epoch: int, *, last: bool) -> bool:
        """Returns whether it is time for a validation."""
        return last or (epoch + 1) % self.every == 0

    def after_epoch(self, end: EpochEnd) -> dict[str, float]:
        """Returns ``clean`` and ``robust`` accuracy as fractions, and has the best weights written.

        With another attack to measure with, the accuracy under that is ``planned``.
        """
        measured = partial(robust_accuracy, end.result, self.images, seed=end.seed, autocast=end.autocast)
        clean, robust = measured(self.attack)
        if self.best is None or robust > self.best:
            self.best = robust
            if text := validation_warning(clean, self.images.labels):
                end.display.say_once("largest class", text)
            end.save_weights("best")
        other = self.planned() if self.planned else None
        result = {"clean": clean, "robust": robust} | ({"planned": measured(other)[1]} if other else {})
        end.validated(result)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Returns the best accuracy so far."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.best = state["best"]
