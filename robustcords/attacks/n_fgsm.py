"""N-FGSM: one step from noise wider than the ball."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from robustcords.attacks.base import default_step_size, first_gradient
from robustcords.attacks.gradient import GradientAttackConfig
from robustcords.attacks.single_step import SingleStepAttack
from robustcords.config.schema import Positive, Radius, filled_in, with_defaults
from robustcords.engine.modes import Model
from robustcords.losses.objective import Objective
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel


class NFGSM(SingleStepAttack):
    """N-FGSM: one step from noise larger than the ball, not projected onto it (de Jorge et al. 2022, Alg. 1).

    ``x' = x + n + step_size * sign(grad CE(x + n))`` with n uniform in the ball of ``noise`` radii: its examples leave
    the ball, so it is for training only. The noisy image and the result are clipped to [0, 1]. Under l2 noise
    and step are those of that norm. https://arxiv.org/abs/2202.01181

    Example:
        >>> method = AdversarialTraining(SAT(), NFGSM(threat, noise=2.0))
    """

    class Config(GradientAttackConfig):
        """Options of N-FGSM.

        Attributes:
            noise: largest size of the uniform noise, as a multiple of the radius.
            step_size: length of the step in the threat's norm; left out, epsilon.
        """

        name: str = "n_fgsm"
        noise: Positive = 2.0
        step_size: Radius | None = None

    contained: ClassVar[bool] = False
    config: NFGSM.Config

    def __init__(self, threat: ThreatModel, **options: Any) -> None:
        super().__init__(threat, **options)
        self.around = threat.with_epsilon(threat.nearest_radius(self.config.noise * threat.epsilon))

    @classmethod
    def resolved(cls, config: NFGSM.Config, threat: ThreatModel) -> NFGSM.Config:
        """Returns the options with a step size."""
        return with_defaults(config, step_size=default_step_size(threat, 1, 1.0))

    @property
    def total_step_length(self) -> float:
        """The step size; the noise is not counted."""
        return filled_in(self.config.step_size)

    def search(self, model: Model, x: Tensor, objective: Objective, noise: Noise) -> Tensor:
        """Returns the images after the one step."""
        noisy = self.around.uniform_start(x, noise)
        return self.threat.ascend(noisy, first_gradient(model, objective, noisy), self.total_step_length)
