"""What the ``[evaluation]`` table of a recipe may say. Kept free of torch, so that recipes are checked quickly."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from robustcords.config import Radius, Table, format_radius

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
        step_size: length of a step in the threat's norm, in pixel space.
        epsilons: the radii to report, in pixel space.
    """

    steps: Annotated[int, Field(ge=1, le=10_000)] = 50
    restarts: Annotated[int, Field(ge=1, le=1_000)] = 10
    step_size: Annotated[Radius, Field(gt=0)] = 2 / 255
    epsilons: Radii = Field(default=[4 / 255, 8 / 255, 16 / 255])


class AutoAttackEvaluation(Table):
    """AutoAttack (Croce and Hein 2020).

    Attributes:
        version: which of AutoAttack's own sets of attacks: ``"standard"``, the longer ``"plus"``, or ``"rand"`` for
            randomised models.
        epsilons: the radii to report, in pixel space.
        limit: attack the first so many test images only; 0 for all that are evaluated.
    """

    version: Literal["standard", "plus", "rand"] = "standard"
    epsilons: Radii = Field(default=[8 / 255])
    limit: Annotated[int, Field(ge=0)] = 0


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
        limit: evaluate the first so many test images only; 0 for all.
    """

    pgd: Annotated[PGDEvaluation | None, *_OFF] = PGDEvaluation()
    autoattack: Annotated[AutoAttackEvaluation | None, *_OFF] = AutoAttackEvaluation()
    checkpoints: list[Literal["best", "last"]] = Field(default=["best", "last"], min_length=1)
    limit: Annotated[int, Field(ge=0)] = 0
