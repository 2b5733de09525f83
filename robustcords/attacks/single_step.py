"""The base class of attacks with one gradient step."""

from __future__ import annotations

from robustcords.attacks.base import Attack
from robustcords.attacks.gradient import GradientAttack
from robustcords.attacks.pgd import PGD


class SingleStepAttack(GradientAttack):
    """An attack of one gradient step, which an effort can skip but not divide. Subclasses implement `search`."""

    @property
    def num_gradient_steps(self) -> int:
        """One."""
        return 1

    def with_effort(self, steps: int, step_size: float | None = None) -> Attack:
        """Returns itself, or with 0 steps an attack that does nothing."""
        return self if steps else PGD(self.threat, steps=0)
