"""Detects catastrophic overfitting: robustness to the training attack alone."""

from __future__ import annotations

from typing import Any, Literal, Self

from robustcords.attacks.base import Attack
from robustcords.config.schema import ComponentConfig
from robustcords.data.images import Images
from robustcords.errors import RunError
from robustcords.evaluation.evaluate import robust_accuracy
from robustcords.training.callbacks.base import Callback, CallbackContext, EpochEnd

FEW_PASSES = 3
"""Attacks with more passes than this have not been seen to overfit in this way, and are not probed."""

IMAGES = 128
"""How many training images the probe attacks: their accuracy has a standard error of at most 4.4 points."""

NOTHING = 0.05
"""Up to this share of the images, robustness is as good as none."""


class OverfittingProbe(Callback):
    """Compares, after every epoch, some images' accuracy under the training attack with that under PGD-10.

    Training on single-step examples can collapse within an epoch (Wong et al. 2020, section 5): accuracy under the
    training attack keeps rising, and robustness against PGD is gone. It is reported when PGD-10 leaves half of what
    was robust at best, or next to nothing, while the training attack is withstood as well as then or by half of the
    images.

    Args:
        images: a part of the training split.
        training: the training attack.
        pgd: a strong attack at the same radius.
        options: the fields of `Config`.
    """

    class Config(ComponentConfig):
        """Options of the probe.

        Attributes:
            action: ``"warn"`` once, or ``"stop"`` the run.
        """

        name: str = "overfitting"
        action: Literal["warn", "stop"] = "warn"

    name = "probe"
    measurable = True
    config: OverfittingProbe.Config

    def __init__(self, images: Images, training: Attack, pgd: Attack, **options: Any) -> None:
        super().__init__(**options)
        self.images, self.training, self.pgd = images, training, pgd
        self.best = self.at_best = 0.0
        self.warned = False

    @classmethod
    def from_context(cls, config: Any, context: CallbackContext) -> Self | None:
        """Returns the probe where the training attack is of the kind that can collapse, else None."""
        if "adversarial" not in context.loss.views or not 0 < context.attack.num_gradient_steps <= FEW_PASSES:
            return None
        images = context.drawn(IMAGES, "overfitting-probe")
        return cls(images, context.attack, context.monitor, name=config.name, **config.options())

    def after_epoch(self, end: EpochEnd) -> dict[str, float]:
        """Returns accuracy under the ``training`` attack and under ``pgd``, as fractions.

        Raises:
            RunError: overfitting, where that is to stop the run.
        """
        accuracies = {
            name: robust_accuracy(
                end.model, self.images, attack, seed=end.seed, autocast=end.autocast, of_training=True
            )[1]
            for name, attack in (("training", self.training), ("pgd", self.pgd))
        }
        training, pgd = accuracies["training"], accuracies["pgd"]
        if pgd >= self.best:
            self.best, self.at_best = pgd, training
        fallen = self.best >= NOTHING * 2 and pgd <= self.best / 2 and training >= self.at_best
        hollow = training >= 0.5 and pgd <= NOTHING
        if (fallen or hollow) and not self.warned:
            self._warn(end, training, pgd)
        return accuracies

    def _warn(self, end: EpochEnd, training: float, pgd: float) -> None:
        text = (
            f"catastrophic overfitting in epoch {end.epoch + 1}: of {len(self.images)} training images "
            f"{training:.0%} withstand the training attack and {pgd:.0%} PGD-10 "
            f"(at best {self.best:.0%}); use more attack steps, attack n_fgsm, loss grad_align or a smaller radius"
        )
        if self.config.action == "stop":
            raise RunError(text)
        end.display.say(f"warning: {text}")
        self.warned = True

    def state_dict(self) -> dict[str, Any]:
        """Returns the best accuracies so far, and whether it has warned."""
        return {"best": self.best, "at_best": self.at_best, "warned": self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.best, self.at_best, self.warned = state["best"], state["at_best"], state["warned"]
