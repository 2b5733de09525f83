"""Noticing catastrophic overfitting: a network that withstands the training attack and nothing else."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from robustcords.attacks.base import Attack
from robustcords.data.images import Images
from robustcords.engine.inference import Autocast
from robustcords.errors import RunError
from robustcords.evaluation.evaluate import robust_accuracy
from robustcords.runtime.progress import Display
from robustcords.training.callbacks.base import Observer

FEW_PASSES = 3
"""Attacks with more passes than this have not been seen to overfit in this way, and are not looked at."""

IMAGES = 128
"""How many training images the probe attacks: their accuracy has a standard error of at most 4.4 points."""

NOTHING = 0.05
"""Up to this share of the images, robustness is as good as none."""


class OverfittingProbe(Observer):
    """Compares, after every epoch, some images' accuracy under the training attack with that under PGD-10.

    Training on single-step examples can collapse within an epoch (Wong et al. 2020, section 5): accuracy under the
    training attack goes on rising, and robustness against PGD is gone. It is told when PGD-10 leaves half of what was
    robust at best, or next to nothing, while the training attack is withstood as well as then or by half of the images.

    Args:
        images: a part of the training split.
        training: the training attack.
        pgd: a strong attack at the same radius.
        action: ``"warn"`` says so once, ``"stop"`` ends the run.
        display: where the warning goes.
    """

    name = "probe"

    def __init__(
        self, images: Images, training: Attack, pgd: Attack, action: Literal["warn", "stop"], display: Display
    ) -> None:
        self.images, self.training, self.pgd = images, training, pgd
        self.action, self.display = action, display
        self.best = self.at_best = 0.0
        self.warned = False

    def look(self, model: nn.Module, epoch: int, *, seed: int, autocast: Autocast) -> dict[str, float]:
        """Returns accuracy under the ``training`` attack and under ``pgd``, as fractions, after an epoch (from 0).

        Raises:
            RunError: overfitting, where that is to stop the run.
        """
        found = {
            name: robust_accuracy(model, self.images, attack, seed=seed, autocast=autocast, of_training=True)[1]
            for name, attack in (("training", self.training), ("pgd", self.pgd))
        }
        if found["pgd"] >= self.best:
            self.best, self.at_best = found["pgd"], found["training"]
        fallen = self.best >= NOTHING * 2 and found["pgd"] <= self.best / 2 and found["training"] >= self.at_best
        hollow = found["training"] >= 0.5 and found["pgd"] <= NOTHING
        if (fallen or hollow) and not self.warned:
            self._tell(epoch, found)
        return found

    def _tell(self, epoch: int, found: dict[str, float]) -> None:
        text = (
            f"catastrophic overfitting in epoch {epoch + 1}: of {len(self.images)} training images "
            f"{found['training']:.0%} withstand the training attack and {found['pgd']:.0%} PGD-10 "
            f"(at best {self.best:.0%}); use more attack steps, a random start or a smaller radius"
        )
        if self.action == "stop":
            raise RunError(text)
        self.display.say(f"warning: {text}")
        self.warned = True

    def state_dict(self) -> dict[str, Any]:
        """Returns what it has seen so far."""
        return {"best": self.best, "at_best": self.at_best, "warned": self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        self.best, self.at_best, self.warned = state["best"], state["at_best"], state["warned"]
