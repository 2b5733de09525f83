"""The results of an evaluation, as in report.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from robustcords.config.schema import parse_radius
from robustcords.storage.records import Count, Record, Share, Some

CLEAN = "clean"
SHORT_FORMS = {"pgd": "PGD", "autoattack": "AutoAttack"}
"""The attacks that have a key of their own in ``[evaluation]`` and in a report, and what single images are kept as."""


def radius(text: str | float) -> str | float:
    """Checks that a radius can be compared with others.

    Raises:
        ValueError: it is no positive number or fraction.
    """
    value = parse_radius(text)
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is not a radius")
    return text


Radius = Annotated[str, AfterValidator(radius)]
"""A radius as a report writes it, such as ``"8/255"``."""


class Measurement(Record):
    """One accuracy: on clean images, or under one attack at one radius.

    Attributes:
        attack: as a recipe names it: ``"pgd"``, ``"autoattack"``, ``"package.module:Class"``; ``"clean"`` for none.
        label: the attack and its effort, such as ``"PGD-50-10"``.
        variant: the form of the attack that ran, if there are several.
        what: the name under which the outcomes of single images are kept.
        radius: as a report writes it; None for an attack that has none.
        accuracy: share of the images that are classified correctly and withstand the attack; null if not finite.
        examples: number of images.
        sample: how these were sampled from the evaluated images; see `robustcords.data.split.sample`.
        largest_class: the largest class's share of them.
        stages: names of the attacks of a chain, in order. The stored outcome of an image is the number of those that it
            withstood.
        after: stage to the accuracy after it.
        same_images: for an attack on a part of the images, ``what`` of the measurements on all images to the accuracy
            on this part.
        warnings: caveats of the figure, a sentence each.
        extras: further figures of the attack, as JSON values.
    """

    attack: str
    label: str
    variant: str = ""
    what: str
    radius: Radius | None = None
    accuracy: Share | None
    examples: Some
    sample: str | None = None
    largest_class: Share | None = None
    stages: list[str] = Field(default=[])
    after: dict[str, Share | None] = Field(default={})
    same_images: dict[str, Share | None] = Field(default={})
    warnings: list[str] = Field(default=[])
    extras: dict[str, Any] = Field(default={})

    @property
    def name(self) -> str:
        """The label with the variant."""
        return f"{self.label} {self.variant}".strip()


class Check(Record):
    """One check for masked gradients.

    Attributes:
        name: what is checked.
        status: ``"pass"``, ``"fail"`` or ``"not conclusive"``.
        finding: a sentence.
        measured: the numbers behind it.
    """

    name: str
    status: str
    finding: str
    measured: dict[str, Any] = Field(default={})


class SanityChecks(Record):
    """What was looked at for masked gradients, and what came out.

    Attributes:
        examples: images looked at.
        sample: how they were taken.
        attacked: those that are classified correctly as they are, which alone are attacked.
        norm: of the attacks.
        epsilon: the radius.
        level: the chance, at most, that an honest model fails one check.
        checks: one for each.
    """

    examples: Count = 0
    sample: str = ""
    attacked: Count = 0
    norm: str = ""
    epsilon: str = ""
    level: float = 0.0
    checks: list[Check]


class SameImages(Record):
    """Accuracies on the images that AutoAttack ran on, where these are fewer."""

    clean: Share | None
    pgd: dict[Radius, Share | None] = Field(default={})


class Evaluation(Record):
    """The results of one set of weights. Accuracies are fractions in [0, 1], radii are written as ``"8/255"``.

    The attributes are the keys of the file, in its order; PGD and AutoAttack have keys of their own, which are missing
    if they did not run. `measurements` has all results in one form.

    Attributes:
        clean: accuracy on clean images.
        examples: number of images.
        sample: how they were sampled: ``"all"``, ``"first"`` or ``"stratified"``.
        largest_class: the largest class's share of them.
        classes_right: the number of classes with an image that is classified correctly.
        pgd: radius to accuracy.
        pgd_attack: such as ``"PGD-50-10"``.
        autoattack: radius to accuracy.
        autoattack_examples: number of images that AutoAttack ran on.
        autoattack_sample: how these were sampled from the evaluated images.
        autoattack_largest_class: the largest class's share of these.
        autoattack_version: with what could not run.
        autoattack_attacks: its attacks.
        autoattack_after: radius to the accuracy after each of these.
        autoattack_warnings: AutoAttack's own.
        same_images: if AutoAttack has fewer images, the other accuracies on those.
        attacks: the measurements of all further attacks.
        per_class: `Measurement.what` to the accuracy of each class with images, for measurements on all images.
        sanity: checks for masked gradients, if they were requested.
    """

    clean: Share | None
    examples: Some
    sample: str | None = None
    largest_class: Share | None = None
    classes_right: Count | None = None
    pgd: dict[Radius, Share | None] = Field(default={})
    pgd_attack: str = ""
    autoattack: dict[Radius, Share | None] = Field(default={})
    autoattack_examples: Some | None = None
    autoattack_sample: str | None = None
    autoattack_largest_class: Share | None = None
    autoattack_version: str = ""
    autoattack_attacks: list[str] = Field(default=[])
    autoattack_after: dict[Radius, dict[str, Share | None]] = Field(default={})
    autoattack_warnings: list[str] = Field(default=[])
    same_images: SameImages | None = None
    attacks: list[Measurement] = Field(default=[])
    per_class: dict[str, dict[str, Share]] = Field(default={})
    sanity: SanityChecks | None = None

    @model_validator(mode="after")
    def _attacks_are_named(self) -> Self:
        if self.pgd and not self.pgd_attack:
            raise ValueError("pgd without pgd_attack")
        if self.autoattack and not (self.autoattack_version and self.autoattack_examples):
            raise ValueError("autoattack without autoattack_version and autoattack_examples")
        return self

    @classmethod
    def of(cls, attacked: Mapping[str, Sequence[Measurement]], **clean: Any) -> Self:
        """Returns an evaluation.

        Args:
            attacked: one of `SHORT_FORMS`, or anything else for a further attack, to what was measured.
            clean: the attributes up to ``classes_right``, and ``per_class``.
        """
        return cls(**clean, **_fields(attacked))

    @property
    def measurements(self) -> list[Measurement]:
        """All accuracies: clean, PGD, AutoAttack, and those of further attacks."""
        whole: dict[str, Any] = {"examples": self.examples, "largest_class": self.largest_class}
        clean = {"attack": CLEAN, "label": CLEAN, "what": CLEAN, "sample": self.sample, **whole}
        pgd = {"attack": "pgd", "label": self.pgd_attack, "sample": "all", **whole}
        same = self.same_images
        autoattack: dict[str, Any] = {
            "attack": "autoattack",
            "label": "AutoAttack",
            "variant": self.autoattack_version,
            "examples": self.autoattack_examples,
            "sample": self.autoattack_sample,
            "largest_class": self.autoattack_largest_class,
            "stages": self.autoattack_attacks,
            "same_images": {CLEAN: same.clean, **{f"PGD {key}": each for key, each in same.pgd.items()}}
            if same
            else {},
            "warnings": self.autoattack_warnings,
        }
        after = self.autoattack_after
        return [
            Measurement(accuracy=self.clean, **clean),
            *(Measurement(what=f"PGD {key}", radius=key, accuracy=each, **pgd) for key, each in self.pgd.items()),
            *(
                Measurement(what=f"AutoAttack {key}", radius=key, accuracy=each, after=after.get(key, {}), **autoattack)
                for key, each in self.autoattack.items()
            ),
            *self.attacks,
        ]

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """The distinct warnings of attacks: the attack's label, and a sentence."""
        found = [("AutoAttack", text) for text in self.autoattack_warnings]
        return list(dict.fromkeys([*found, *((each.label, text) for each in self.attacks for text in each.warnings)]))

    def under(self, title: str) -> list[Measurement]:
        """Returns the measurements of an attack, by its title in progress and in the files of single images."""
        return [each for each in self.measurements if each.what == f"{title} {each.radius or ''}".strip()]

    def accuracy(self, attack: str, radius: str | None = None) -> float | None:
        """Returns the accuracy under an attack, by its name in a recipe, at a radius; None if it was not measured."""
        accuracies = (each.accuracy for each in self.measurements if (each.attack, each.radius) == (attack, radius))
        return next(accuracies, None)

    def with_more(self, other: Self) -> Self:
        """Returns this evaluation with the missing attacks and radii of another one, and with its checks."""
        update: dict[str, Any] = {}
        for key in other.model_fields_set:
            mine, theirs = getattr(self, key), getattr(other, key)
            if key == "sanity":
                update[key] = theirs
            elif key == "per_class":
                update[key] = {**theirs, **mine}
            elif key == "attacks":
                update[key] = mine + [each for each in theirs if each.what not in {known.what for known in mine}]
            elif key.startswith(tuple(SHORT_FORMS)):
                if key == "autoattack_warnings":
                    update[key] = list(dict.fromkeys([*mine, *theirs]))
                elif isinstance(theirs, dict):
                    update[key] = {**theirs, **mine}
                elif key not in self.model_fields_set:
                    update[key] = theirs
        return self.model_copy(update=update)


def _fields(attacked: Mapping[str, Sequence[Measurement]]) -> dict[str, Any]:
    """Returns the keys of an evaluation that some measurements are written as."""
    fields: dict[str, Any] = {}
    if pgd := attacked.get("pgd"):
        fields |= {"pgd": {each.radius: each.accuracy for each in pgd}, "pgd_attack": pgd[0].label}
    if autoattack := attacked.get("autoattack"):
        first = autoattack[0]
        fields |= {
            "autoattack": {each.radius: each.accuracy for each in autoattack},
            "autoattack_examples": first.examples,
            "autoattack_sample": first.sample,
            "autoattack_largest_class": first.largest_class,
            "autoattack_version": first.variant,
            "autoattack_attacks": first.stages,
            "autoattack_after": {each.radius: each.after for each in autoattack},
            "autoattack_warnings": list(dict.fromkeys(text for each in autoattack for text in each.warnings)),
        }
        if same := first.same_images:
            on_pgd = {each.radius: same[each.what] for each in pgd or () if each.radius}
            fields["same_images"] = SameImages(clean=same[CLEAN], pgd=on_pgd)
    if further := [each for name, measured in attacked.items() if name not in SHORT_FORMS for each in measured]:
        fields["attacks"] = further
    return fields
