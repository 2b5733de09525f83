"""Curriculum adversarial training (CAT): attacks of increasing strength, mixed within each batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustcords.attacks.base import Attack
from robustcords.config.requirements import STEPS_BY_EXAMPLE, STEPS_TO_VARY, VALIDATION_IMAGES
from robustcords.config.schema import Share
from robustcords.losses.context import Moment
from robustcords.methods.efforts.base import Effort, EffortConfig, Kinds, Plan
from robustcords.rng import Noise
from robustcords.rng import generator as generator_for
from robustcords.runtime import collectives


class Curriculum(Effort):
    """Curriculum adversarial training with batch mixing (Cai et al. 2018), arXiv 1805.04807.

    The global batch is split evenly over PGD-0, the clean images, to PGD-k. k starts at 0; after a validation it rises
    by 1 if the held-out accuracy under PGD-k has not improved for ``patience`` epochs, or if the share of the last
    epoch's training images that were classified correctly under attack exceeds ``enough``. The step size of PGD-n is
    ``length / n * U(1, max(1, spread / n))``, drawn for each n and batch, where ``length`` is the total step length of
    ``[attack]``.

    Attributes:
        strength: k.

    Example:
        >>> effort = Curriculum(most=5)
    """

    class Config(EffortConfig):
        """Options of the curriculum; the defaults are those of the authors' script on CIFAR-10.

        Attributes:
            most: largest number of steps.
            patience: number of epochs without a better validation accuracy after which one step is added.
            enough: share of the epoch's training images classified correctly under attack above which one step is
                added.
            spread: range of the step size of PGD-n, which is drawn for each batch: from 1 to ``spread / n`` times the
                total step length of ``[attack]`` divided by n. With 1 nothing is drawn.
        """

        name: str = "curriculum"
        most: Annotated[int, Field(ge=1, le=1000)] = 7
        patience: Annotated[int, Field(ge=1)] = 10
        enough: Share = 0.95
        spread: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 10.0

    config: Curriculum.Config
    requires: ClassVar[frozenset[str]] = frozenset({STEPS_TO_VARY, STEPS_BY_EXAMPLE, VALIDATION_IMAGES})
    observes: ClassVar[bool] = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.strength = 0
        self._epoch = self._hits = self._seen = 0
        self._best: float | None = None
        self._best_epoch = 0

    def plan(self, attack: Attack, clean: Callable[[], Tensor], y: Tensor, moment: Moment, generator: Noise) -> Plan:
        """Returns the steps of each example's part of the global batch, and the part as its kind."""
        del clean
        if moment.epoch != self._epoch:
            self._epoch, self._hits, self._seen = moment.epoch, 0, 0
        places = torch.arange(len(y)) + collectives.rows_before(y)
        # Interleaved, so that processes and micro-batches have the same work.
        steps = places % (self.strength + 1)
        drawn = torch.rand(
            self.config.most, generator=generator_for(generator.seed, "step size", moment.step), dtype=torch.float64
        )
        sizes = drawn.new_tensor([0.0, *(self._size(attack, n, u) for n, u in enumerate(drawn.tolist(), 1))])
        names = tuple(f"pgd-{number}" for number in range(self.config.most + 1))
        return Plan(steps, sizes[steps], Kinds(names, steps))

    def observe(self, correct: Tensor) -> None:
        """Counts the correctly classified examples of the epoch."""
        hits, seen = collectives.sum_over([int(correct.sum()), len(correct)], device=correct.device)
        self._hits, self._seen = self._hits + int(hits), self._seen + int(seen)

    def validation_attack(self, attack: Attack) -> Attack:
        """Returns PGD-k, with the attack's total step length."""
        return attack.with_effort(self.strength, self._size(attack, self.strength))

    def on_validation(self, result: Mapping[str, float]) -> None:
        """Raises k by 1 if it is time."""
        accuracy = result.get("planned", result["robust"])
        if self._best is None or accuracy > self._best:
            self._best, self._best_epoch = accuracy, self._epoch
        stuck = self._epoch - self._best_epoch >= self.config.patience
        learnt = self._hits > self.config.enough * self._seen
        if self.strength < self.config.most and (stuck or learnt):
            self.strength, self._best = self.strength + 1, None

    def attacks(self, attack: Attack) -> dict[str, Attack]:
        """Returns PGD-1 to PGD-``most``."""
        numbers = range(1, self.config.most + 1)
        return {f"pgd-{number}": attack.with_effort(number, self._size(attack, number)) for number in numbers}

    def state_dict(self) -> dict[str, Any]:
        """Returns k, and the counts and accuracies that it rises by."""
        return {
            "strength": self.strength,
            "epoch": self._epoch,
            "hits": self._hits,
            "seen": self._seen,
            "best": self._best,
            "best_epoch": self._best_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.strength, self._epoch, self._best_epoch = state["strength"], state["epoch"], state["best_epoch"]
        self._hits, self._seen, self._best = state["hits"], state["seen"], state["best"]

    def _size(self, attack: Attack, steps: int, drawn: float = 0.0) -> float:
        """Returns a step size.

        Args:
            attack: for its total step length.
            steps: number of steps; 0 counts as 1.
            drawn: random number in [0, 1); 0 for the smallest.
        """
        steps = max(1, steps)
        length = attack.total_step_length
        length = 2.5 * attack.threat.epsilon if length is None else length
        return length / steps * (1 + drawn * (max(1.0, self.config.spread / steps) - 1))
