"""The base class of evaluation attacks: their options, and the loop over the images that are still robust."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field
from torch import Tensor

from robustcords.config.requirements import words
from robustcords.config.schema import Radius, Table, format_radius, is_radius
from robustcords.engine import contracts
from robustcords.engine.modes import Model, modes_kept, without_parameter_gradients
from robustcords.errors import UserError
from robustcords.evaluation.evaluator import Evaluator, share, survivors
from robustcords.evaluation.ledger import Work
from robustcords.evaluation.majority import largest_share
from robustcords.evaluation.results import Measurement
from robustcords.models.base import ImageSize
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel


def _radii(values: list[float]) -> list[float]:
    """Returns the radii unchanged if they are distinct in a report.

    Raises:
        ValueError: a radius is 0, or two are the same.
    """
    if any(value <= 0 for value in values):
        raise ValueError("every radius must be greater than 0; clean accuracy is always reported")
    names = [format_radius(value) for value in values]
    twice = [name for row, name in enumerate(names) if name in names[:row]]
    if twice:
        raise ValueError(f"{twice[0]} is given twice")
    return values


Radii = Annotated[list[Radius], Field(min_length=1), AfterValidator(_radii)]
"""One or more different radii, each greater than 0."""


class EvaluationAttackConfig(Table):
    """Options of an evaluation attack. One that reports radii has a field ``epsilons: Radii | None = None``."""

    blamed: ClassVar[tuple[str, ...]] = ("epsilons",)
    """The keys to change where the attack falls short, the likeliest first."""

    @property
    def radii(self) -> list[float]:
        """The radii to report; empty for an attack without such an option, or before `resolved`."""
        return list(getattr(self, "epsilons", None) or [])

    @property
    def wants_radii(self) -> bool:
        """Whether radii are left out and follow from the threat model."""
        return "epsilons" in type(self).model_fields and not self.radii

    @property
    def lengths(self) -> list[float]:
        """All radii and steps among the options."""
        fields = type(self).model_fields.items()
        values = [getattr(self, key) for key, field in fields if is_radius(field.annotation, field.metadata)]
        return [each for value in values if value for each in (value if isinstance(value, list) else [value])]

    @property
    def falls_short(self) -> str | None:
        """A warning if the attack, after `resolved`, cannot reach its radii; else None."""
        return None

    def resolved(self, threat: ThreatModel) -> Self:
        """Returns the options with defaults from the threat model filled in: by default its radius.

        Raises:
            ValueError: the attack does not support this threat model.
        """
        return self.model_copy(update={"epsilons": [threat.epsilon]}) if self.wants_radii else self

    def at(self, radii: Sequence[float], threat: ThreatModel) -> Self:
        """Returns the options with other radii, if the attack has any, before `resolved`.

        Args:
            radii: to report.
            threat: that the current options were resolved for.

        Raises:
            pydantic.ValidationError: the radii are invalid.
        """
        del threat
        return type(self)(**{**dict(self), "epsilons": list(radii)}) if "epsilons" in type(self).model_fields else self


class EvaluationAttack:
    """An attack that measures a finished model's robustness.

    A subclass implements `attack_batch`, and declares its options in a nested ``Config``. This class handles chunks,
    processes, resuming, images that are already broken, and the projection. An attack without a radius, or without
    images, overrides `run`.

    Args:
        threat: the norm, and the radius for options that are left out.
        title: its name in progress and in the files of single images; left out, its label.
        name: as a recipe names it; left out, ``"module:Class"``.
        options: the fields of ``Config``.

    Attributes:
        requires: what the threat model has to provide, in the words of `robustcords.config.requirements`.

    Raises:
        UserError: the class implements neither `attack_batch` nor `run`, or has no radii and no `run`.
        ValueError: the threat model does not provide what it requires.

    Example:
        >>> class Noise255(EvaluationAttack):
        ...     '''One random point of the ball.'''
        ...     class Config(EvaluationAttackConfig):
        ...         epsilons: Radii | None = None
        ...     def attack_batch(self, model, x, y, noise, threat):
        ...         return threat.uniform_start(x, noise)
    """

    Config: ClassVar[type[EvaluationAttackConfig]] = EvaluationAttackConfig
    requires: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, threat: ThreatModel, *, title: str = "", name: str = "", **options: Any) -> None:
        self.name = name or contracts.title(self)
        self.check_threat(self.name, threat)
        self.config: Any = self.Config(**options).resolved(threat)
        self.threat = threat
        self.given_title = title
        self.number = 1
        self._check_written()

    @classmethod
    def check_threat(cls, name: str, threat: ThreatModel) -> None:
        """Checks that a threat model provides what the attack requires.

        Raises:
            ValueError: it does not.
        """
        for word in sorted(words(cls.requires) - words(threat.provides)):
            raise ValueError(
                f'the attack "{name}" requires {word}, which threat.norm = {threat.norm!r} does not provide'
            )

    def _check_written(self) -> None:
        """Checks that the class implements a measurement.

        Raises:
            UserError: it does not.
        """
        kind, base = type(self), EvaluationAttack
        if kind.run is not base.run:
            return
        if (kind.attack_batch, kind.withstands) == (base.attack_batch, base.withstands):
            raise UserError(f"attack {contracts.title(self)} writes neither attack_batch nor run")
        if "epsilons" not in self.Config.model_fields:
            raise UserError(
                f"attack {contracts.title(self)} writes no run, and has no radii to report: "
                "its Config needs epsilons: Radii | None = None"
            )

    @property
    def label(self) -> str:
        """The attack's name in reports, with its settings, such as ``"PGD-50-10"``."""
        return type(self).__name__

    @property
    def suffix(self) -> str:
        """Distinguishes attacks with the same label; `number` counts them from 1."""
        return f" ({self.number})" if self.number > 1 else ""

    @property
    def title(self) -> str:
        """The attack's name in progress and in the files of single images."""
        return f"{self.given_title or self.label}{self.suffix}"

    def what(self, radius: str | None) -> str:
        """Returns the title with a radius, in the form of reports."""
        return f"{self.title} {radius or ''}".strip()

    @property
    def limit(self) -> int:
        """Number of evaluated images to attack; 0 for all."""
        return 0

    def passes(self, classes: int, image_size: ImageSize) -> float | None:
        """Returns the approximate number of forward and backward passes per robust image, at all radii together.

        Args:
            classes: number of logits.
            image_size: height and width of the images.

        Returns:
            The number; None, the default, if it is unknown.
        """
        del classes, image_size
        return None

    def attack_batch(self, model: Model, x: Tensor, y: Tensor, noise: Noise, threat: ThreatModel) -> Tensor:
        """Returns adversarial images (B, C, H, W), which the caller projects onto the ball of ``threat``.

        Args:
            model: images in [0, 1] to logits, in eval mode.
            x: (B, C, H, W) in [0, 1], each classified correctly.
            y: (B,) labels.
            noise: keyed by image.
            threat: with the reported radius.
        """
        raise NotImplementedError

    def withstands(
        self, model: Model, x: Tensor, y: Tensor, noise: Noise, alive: Tensor, threat: ThreatModel
    ) -> Tensor:
        """Returns a mask (B,) of the images ``alive`` that withstand the attack; the others are False.

        The arguments are those of `attack_batch`, for any number of images.
        """

        def attacked(x: Tensor, y: Tensor, noise: Noise) -> Tensor:
            with modes_kept(model):
                candidates = self.attack_batch(model, x.clone(), y, noise, threat)  # which may overwrite its images
            x_adv = threat.project(contracts.candidates(self, candidates, x).detach(), x)
            if not bool(x_adv.isfinite().all()):  # NaN is in no ball
                raise UserError(f"attack {contracts.title(self)} returned pixels that are not finite")
            return x_adv

        with without_parameter_gradients(model):
            return survivors(model, x, y, noise, alive, attacked)

    def run(self, evaluator: Evaluator, clean: Tensor) -> list[Measurement]:
        """Returns the accuracy at each radius.

        Args:
            evaluator: of the model and the images.
            clean: mask (count,) of the correctly classified clean images.
        """
        options = self.config.model_dump(mode="json", exclude={"epsilons", "limit"})
        settings = {"by": contracts.title(self), "attack": options}
        measurements = []
        for epsilon in self.config.radii:
            threat = self.threat.with_epsilon(epsilon)

            def chunk(rows: Tensor, threat: ThreatModel = threat) -> tuple[Tensor, list[str]]:
                x, y = evaluator.batch(rows)
                alive, noise = clean[rows].to(evaluator.device), evaluator.noise("evaluation", rows)
                return self.withstands(evaluator.model, x, y, noise, alive, threat).long(), []

            measurements.append(self.measure(evaluator, format_radius(epsilon), settings, chunk))
        return measurements

    def measure(
        self,
        evaluator: Evaluator,
        radius: str | None,
        settings: dict[str, Any],
        work: Work,
        stages: Sequence[str] = (),
    ) -> Measurement:
        """Returns the accuracy at a radius, and has the evaluator note which images withstood.

        Args:
            evaluator: of the model and the images.
            radius: as reports write it; None for an attack without.
            settings: everything that the outcomes depend on besides radius, model, images, norm and seed.
            work: rows (k,) of the evaluator's images to outcomes, 1 for an image that withstands the attack or 0, and
                warnings.
            stages: names of the attacks of a chain, in order; outcomes are then how many of them an image withstands.
        """
        places, kind = evaluator.part(self.limit)
        settings = {**settings, "epsilon": radius}
        if kind == "stratified":  # the first so many of other images have the same number, and are others
            settings["places"] = kind
        what = self.what(radius)
        outcomes, warnings = evaluator.run(what, settings, len(places), lambda rows: work(places[rows]))
        flags = outcomes >= max(1, len(stages))
        details: dict[str, Any] = {
            "stages": list(stages),
            "after": {name: share(outcomes > number) for number, name in enumerate(stages)},
            "same_images": {name: share(kept[places]) for name, kept in evaluator.withstood.items() if kind != "all"},
            "warnings": warnings,
        }
        if kind == "all":
            evaluator.withstood[what] = flags
        return Measurement(
            attack=self.name,
            label=f"{self.label}{self.suffix}",
            what=what,
            radius=radius,
            accuracy=share(flags),
            examples=len(places),
            sample=kind,
            largest_class=largest_share(evaluator.labels[places]),
            **{key: value for key, value in details.items() if value},
        )
