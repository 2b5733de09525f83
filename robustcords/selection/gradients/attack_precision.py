"""An attack in another precision than training's."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from robustcords.attacks.base import Attack
from robustcords.engine.inference import Inference
from robustcords.engine.modes import Model
from robustcords.engine.precision import Precision, autocast, full_precision
from robustcords.losses.base import Loss
from robustcords.losses.objective import Objective
from robustcords.rng import Noise


class AttackIn(Attack):
    """An attack whose forward and backward passes run in another precision.

    Operations on images outside the model, and the objective, are in float32.

    Args:
        attack: the wrapped attack.
        precision: of its passes.
    """

    def __init__(self, attack: Attack, precision: Precision) -> None:
        super().__init__(attack.threat)
        self.attack, self.precision = attack, precision

    @property
    def contained(self) -> bool:  # type: ignore[override]  # a class's own, and here another attack's
        """Whether the attack stays inside the ball."""
        return self.attack.contained

    def objective_for(self, loss: Loss, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        """Returns the attack's objective."""
        return self.attack.objective_for(loss, y, clean)

    @property
    def num_gradient_steps(self) -> int:
        """The attack's."""
        return self.attack.num_gradient_steps

    @property
    def total_step_length(self) -> float | None:
        """The attack's."""
        return self.attack.total_step_length

    def search(self, model: Model, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        """Returns the attack's candidates."""
        inner: Model = model.model if isinstance(model, Inference) else model

        def forward(images: Tensor) -> Tensor:
            with autocast(self.precision, images.device):
                return full_precision(inner(images))

        forward.exact = inner  # type: ignore[attr-defined]  # what `in_float32` runs
        # Backward passes too would be cast by a context that this is called in.
        with autocast("fp32", x.device):
            return self.attack.search(forward, x, objective, noise)

    def with_effort(self, steps: int, step_size: float | None = None) -> AttackIn:
        """Returns the attack with these steps, in the same precision."""
        return AttackIn(self.attack.with_effort(steps, step_size), self.precision)
