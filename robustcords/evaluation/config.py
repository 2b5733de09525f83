"""What the ``[evaluation]`` table of a recipe may say. Kept free of torch, so that recipes are checked quickly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from robustcords.config.schema import Radius, Table, format_radius, rounded_radius

if TYPE_CHECKING:
    from robustcords.threats.base import ThreatModel

ATTACKS = ("autoattack", "pgd")
"""The keys of ``[evaluation]`` that are attacks."""


def _radii(values: list[float]) -> list[float]:
    """Returns the radii unchanged if a report can tell them apart.

    Raises:
        ValueError: a radius is 0, or two are the same.
    """
    if any(value <= 0 for value in values):
        raise ValueError("every radius must be greater than 0; clean accuracy is always reported")
    names = [format_radius(value) for value in values]
    twice = [name for row, name in enumerate(names) if name in names[:row]]
    if twice:
        raise ValueError(f"{twice[0]} stands there twice")
    return values


Radii = Annotated[list[Radius], Field(min_length=1), AfterValidator(_radii)]
"""One or more different radii, each greater than 0."""


class PGDEvaluation(Table):
    """PGD-s-r: ``steps`` steps from each of ``restarts`` uniform random starts (Li et al. 2023, section 4).

    Attributes:
        steps: gradient steps of each restart, 1 to 10,000.
        restarts: random starts, 1 to 1,000; an example is robust only if it withstands all of them.
        step_size: length of a step in the threat's norm, in pixel space; left out, a quarter of the threat's epsilon
            (of the smallest radius where one is not between half and twice epsilon), or what reaches the largest radius
            where so many steps are too few.
        epsilons: the radii to report, in pixel space; left out, half the threat's epsilon, epsilon and twice epsilon.
    """

    steps: Annotated[int, Field(ge=1, le=10_000)] = 50
    restarts: Annotated[int, Field(ge=1, le=1_000)] = 10
    step_size: Annotated[Radius, Field(gt=0)] | None = None
    epsilons: Radii | None = None

    def resolved(self, threat: ThreatModel) -> PGDEvaluation:
        """Returns the options with those that follow from the threat model where they are left out.

        At 8/255 these are the paper's: steps of 2/255, and 4, 8 and 16/255.
        """
        radii = self.epsilons or _around(threat)
        size = self.step_size or following_step(radii, threat.epsilon, self.steps)
        return self.model_copy(update={"step_size": size, "epsilons": radii})

    @property
    def falls_short(self) -> str | None:
        """One sentence where so many steps do not reach the largest radius, after `resolved`; else None."""
        radii, size = self.epsilons or [], self.step_size or 0.0
        if self.steps * size >= max(radii, default=0.0) * (1 - 1e-9):
            return None
        return (
            f"{self.steps} steps of {format_radius(size)} move an image by {self.steps * size:.3g} at most, less than "
            f"the radius {format_radius(max(radii))}; {format_radius(following_step(radii, max(radii), self.steps))} "
            f"would do"
        )


def following_step(radii: Sequence[float], epsilon: float, steps: int) -> float:
    """Returns the evaluation's step size where none is given: one for all radii.

    Args:
        radii: that PGD is run at.
        epsilon: the threat's.
        steps: of each restart.
    """
    # Radii are rounded to the digits that people write, so that half of epsilon can be a little less than that.
    near = all(epsilon / 2 <= radius * (1 + 1e-9) and radius <= 2 * epsilon * (1 + 1e-9) for radius in radii)
    base = epsilon if near else min(radii)
    return rounded_radius(max(base / 4, max(radii) / steps))


def _around(threat: ThreatModel) -> list[float]:
    """Returns half the radius, the radius and twice the radius, as far as there are such."""
    radii = [rounded_radius(min(factor * threat.epsilon, threat.largest)) for factor in (0.5, 1.0, 2.0)]
    return list(dict.fromkeys(radii))


class AutoAttackEvaluation(Table):
    """AutoAttack (Croce and Hein 2020).

    Attributes:
        version: which of AutoAttack's own sets of attacks: ``"standard"``, the longer ``"plus"``, or ``"rand"`` for
            randomised models.
        epsilons: the radii to report, in pixel space; left out, the threat's epsilon.
        limit: attack so many of the evaluated images only, taken as by ``evaluation.limit``; 0 for all of them.
    """

    version: Literal["standard", "plus", "rand"] = "standard"
    epsilons: Radii | None = None
    limit: Annotated[int, Field(ge=0)] = 0

    def resolved(self, threat: ThreatModel) -> AutoAttackEvaluation:
        """Returns the options with the radius of the threat model where none is given."""
        return self if self.epsilons else self.model_copy(update={"epsilons": [threat.epsilon]})


def _switch(value: Any) -> Any:
    """Turns ``false`` into None, and says what is allowed where neither a table nor ``false`` is given."""
    if value is False or value is None:
        return None
    if not isinstance(value, dict | Table):
        raise ValueError("must be a table of options, or false to leave it out")  # noqa: TRY004
    return value


# TOML has no null: None is read from, and written as, `false`.
_OFF = (BeforeValidator(_switch), PlainSerializer(lambda value: False if value is None else value))


class EvaluationConfig(Table):
    """The ``[evaluation]`` table.

    Attributes:
        pgd: options of PGD, or ``false`` (None in Python) to leave it out.
        autoattack: options of AutoAttack, or ``false`` (None in Python) to leave it out.
        checkpoints: which weights to evaluate; ``"best"`` is passed over where a run has none.
        limit: evaluate so many test images only; 0 for all. The first so many where the set is in random order, else
            a fixed sample, stratified by class.
    """

    pgd: Annotated[PGDEvaluation | None, *_OFF] = PGDEvaluation()
    autoattack: Annotated[AutoAttackEvaluation | None, *_OFF] = AutoAttackEvaluation()
    checkpoints: list[Literal["best", "last"]] = Field(default=["best", "last"], min_length=1)
    limit: Annotated[int, Field(ge=0)] = 0

    def resolved(self, threat: ThreatModel) -> EvaluationConfig:
        """Returns the options with those that follow from the threat model where they are left out.

        Raises:
            ValueError: the threat's epsilon is 0, and an attack has no radii of its own; or AutoAttack has no attacks
                in its norm.
        """
        chosen = self._attacks()
        if self.autoattack and threat.autoattack_norm is None:
            raise ValueError(f"AutoAttack has no attacks for threat.norm = {threat.norm!r}; set autoattack = false")
        for name, attack in chosen.items():
            if threat.epsilon == 0 and not attack.epsilons:
                raise ValueError(f"no radius follows from threat.epsilon = 0; give {name}.epsilons, or {name} = false")
        return self.model_copy(update={name: attack.resolved(threat) for name, attack in chosen.items()})

    def refuse_beyond_range(self, threat: ThreatModel) -> None:
        """Checks, after `resolved`, that no radius or step is longer than any that means something.

        Raises:
            ValueError: one is.
        """
        for attack in self._attacks().values():
            threat.check_radius(max([*(attack.epsilons or []), getattr(attack, "step_size", None) or 0.0]))

    def unmeasured(self, threat: ThreatModel) -> list[str]:
        """Returns a sentence where attacks are run, and none at the threat's own radius."""
        radii = {format_radius(radius) for attack in self._attacks().values() for radius in attack.epsilons or []}
        if not radii or not threat.epsilon or format_radius(threat.epsilon) in radii:
            return []
        return [f"the evaluation has no radius {format_radius(threat.epsilon)}, which training is for (threat.epsilon)"]

    def _attacks(self) -> dict[str, PGDEvaluation | AutoAttackEvaluation]:
        """Returns the options of the attacks that are not left out, by name."""
        attacks = {"pgd": self.pgd, "autoattack": self.autoattack}
        return {name: attack for name, attack in attacks.items() if attack is not None}
