"""PGD with restarts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field
from torch import Tensor

from robustcords.attacks.pgd import PGD
from robustcords.config.schema import PositiveRadius, format_radius, rounded_radius
from robustcords.engine.modes import Model
from robustcords.evaluation.attacks.base import EvaluationAttack, EvaluationAttackConfig, Radii
from robustcords.evaluation.evaluator import withstands
from robustcords.losses.objective import cross_entropy_of, margin_of
from robustcords.models.base import ImageSize
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel


class PGDEvaluation(EvaluationAttackConfig):
    """PGD-s-r: ``steps`` steps from each of ``restarts`` uniform random starts (Li et al. 2023, section 4).

    Attributes:
        steps: number of gradient steps of each restart.
        restarts: number of uniform random starts; an example is robust only if it withstands all of them.
        step_size: length of a step in the threat's norm; left out, epsilon / 4, or a quarter of the smallest radius if
            a radius is below half or above twice epsilon, or the length that reaches the largest radius if there are
            too few steps. Steps that do not reach the largest radius are refused.
        objective: what is maximised: ``"ce"``, cross-entropy, or ``"margin"``, ``max_{k != y} z_k - z_y`` (Carlini and
            Wagner 2017), which does not saturate where a model is confident.
        epsilons: the radii to report, all different and above 0; left out, half of epsilon, epsilon and twice epsilon.
    """

    blamed: ClassVar[tuple[str, ...]] = ("step_size", "steps", "epsilons")

    steps: Annotated[int, Field(ge=1, le=10_000)] = 50
    restarts: Annotated[int, Field(ge=1, le=1_000)] = 10
    step_size: PositiveRadius | None = None
    objective: Literal["ce", "margin"] = "ce"
    epsilons: Radii | None = None

    def resolved(self, threat: ThreatModel) -> Self:
        """Returns the options with defaults from the threat model filled in.

        At 8/255 these are the paper's: steps of 2/255, and 4, 8 and 16/255.
        """
        radii = self.epsilons or _around(threat)
        size = self.step_size or following_step(radii, threat.epsilon, self.steps)
        return self.model_copy(update={"step_size": size, "epsilons": radii})

    def at(self, radii: Sequence[float], threat: ThreatModel) -> Self:
        """Returns the options with other radii; a default step size follows from them again."""
        followed = self.model_copy(update={"step_size": None}).resolved(threat).step_size == self.step_size
        step_size = None if followed else self.step_size
        return type(self)(**{**dict(self), "step_size": step_size, "epsilons": list(radii)})

    @property
    def falls_short(self) -> str | None:
        """A warning if the steps together do not reach the largest radius, after `resolved`; else None."""
        radii, size = self.radii, self.step_size or 0.0
        if self.steps * size >= max(radii, default=0.0) * (1 - 1e-9):
            return None
        return (
            f"{self.steps} steps of {format_radius(size)} move an image by {self.steps * size:.3g} at most, less than "
            f"the radius {format_radius(max(radii))}; {format_radius(following_step(radii, max(radii), self.steps))} "
            f"would do"
        )


def following_step(radii: Sequence[float], epsilon: float, steps: int) -> float:
    """Returns the evaluation's default step size, one for all radii.

    Args:
        radii: of the evaluation.
        epsilon: the threat's.
        steps: of each restart.
    """
    # Radii are rounded to the digits that people write, so that half of epsilon can be a little less than that.
    near = all(epsilon / 2 <= radius * (1 + 1e-9) and radius <= 2 * epsilon * (1 + 1e-9) for radius in radii)
    base = epsilon if near else min(radii)
    return rounded_radius(max(base / 4, max(radii) / steps))


def _around(threat: ThreatModel) -> list[float]:
    """Returns half the radius, the radius and twice the radius, as far as they are valid."""
    return list(dict.fromkeys(threat.nearest_radius(factor * threat.epsilon) for factor in (0.5, 1.0, 2.0)))


class RestartedPGD(EvaluationAttack):
    """PGD from several random starts, on cross-entropy or the margin; broken images are dropped (Madry et al. 2018)."""

    Config = PGDEvaluation
    config: PGDEvaluation

    @property
    def label(self) -> str:
        """``"PGD-50-10"``, or ``"margin PGD-50-10"``."""
        name = f"PGD-{self.config.steps}-{self.config.restarts}"
        return f"margin {name}" if self.config.objective == "margin" else name

    def passes(self, classes: int, image_size: ImageSize) -> float:
        """Returns the steps of all restarts at all radii."""
        del classes, image_size
        return float(self.config.steps * self.config.restarts * len(self.config.radii))

    def withstands(
        self, model: Model, x: Tensor, y: Tensor, noise: Noise, alive: Tensor, threat: ThreatModel
    ) -> Tensor:
        """Returns a mask (B,) of the images that withstand every restart."""
        attack = PGD(threat, steps=self.config.steps, step_size=self.config.step_size, random_start="uniform")
        objective_of = margin_of if self.config.objective == "margin" else cross_entropy_of
        return withstands(model, x, y, noise, alive, attack, self.config.restarts, objective_of)
