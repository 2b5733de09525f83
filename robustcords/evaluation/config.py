"""The ``[evaluation]`` table of a recipe."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, PlainSerializer, SerializeAsAny, model_serializer, model_validator

from robustcords.config import registry
from robustcords.config.schema import OrFalse, Table, format_radius
from robustcords.evaluation.attacks.autoattack import AutoAttackEvaluation
from robustcords.evaluation.attacks.base import EvaluationAttack, EvaluationAttackConfig
from robustcords.evaluation.attacks.pgd import PGDEvaluation
from robustcords.evaluation.results import SHORT_FORMS
from robustcords.threats.base import ThreatModel

# What is left out is written as `false`, or it would be switched on when it is read again.
_OFF = (OrFalse(), PlainSerializer(lambda value: False if value is None else value))


class FurtherAttack(Table):
    """A table of ``evaluation.attacks``: the attack's name, and its options.

    Attributes:
        name: a registered attack, or ``"package.module:Class"``.
        options: validated by the attack's ``Config``.
    """

    name: str
    options: SerializeAsAny[EvaluationAttackConfig]

    @model_validator(mode="before")
    @classmethod
    def _beside(cls, values: Any) -> Any:
        """Validates the options by the named attack."""
        if not isinstance(values, dict) or not isinstance(values.get("name"), str) or "options" in values:
            return values
        options = {key: value for key, value in values.items() if key != "name"}
        return {"name": values["name"], "options": attack_class(values["name"]).Config(**options)}

    def build(self, threat: ThreatModel, title: str = "") -> EvaluationAttack:
        """Returns the attack under a threat model; see `EvaluationAttack`."""
        options = {"title": title, "name": self.name, **dict(self.options)}
        attack: EvaluationAttack = registry.constructed("evaluation_attack", attack_class(self.name), threat, **options)
        return attack

    @model_serializer
    def _flat(self) -> dict[str, Any]:
        written = {"name": self.name, **self.options.model_dump()}
        return {key: value for key, value in written.items() if value is not None}


def attack_class(name: str) -> type[EvaluationAttack]:
    """Returns the class of an evaluation attack.

    Raises:
        UserError: there is none of that name.
        ValueError: the name is of something else.
    """
    attack, base = registry.find("evaluation_attack", name), EvaluationAttack
    if not (isinstance(attack, type) and issubclass(attack, base)):
        raise ValueError(f"{name!r} is no subclass of {base.__module__}:{base.__name__}")  # noqa: TRY004 -- a name's value
    return attack


class EvaluationConfig(Table):
    """The ``[evaluation]`` table.

    Attributes:
        pgd: options of PGD; ``false`` leaves it out.
        autoattack: options of AutoAttack; ``false`` leaves it out.
        attacks: further attacks, run after these two, in order: tables with a ``name``, one of ``robustcords list
            evaluation_attack`` or ``"package.module:Class"``, and that attack's options. For example, ``[{name = "pgd",
            objective = "margin"}]`` reports PGD on the margin too.
        checkpoints: which weights to evaluate; without a validation split the default is ``["last"]``. ``"best"`` is
            skipped if a run has none.
        limit: number of test images to evaluate, 0 for all. They are the first ones if the set is in random order,
            otherwise a fixed sample, stratified by class.
    """

    pgd: Annotated[PGDEvaluation | None, *_OFF] = PGDEvaluation()
    autoattack: Annotated[AutoAttackEvaluation | None, *_OFF] = AutoAttackEvaluation()
    attacks: list[FurtherAttack] = Field(default=[])
    checkpoints: list[Literal["best", "last"]] = Field(default=["best", "last"], min_length=1)
    limit: Annotated[int, Field(ge=0)] = 0

    @property
    def chosen(self) -> dict[str, FurtherAttack]:
        """The attacks' tables in running order, by their keys in this table."""
        short = {name: getattr(self, name) for name in SHORT_FORMS}
        tables = {name: FurtherAttack(name=name, options=options) for name, options in short.items() if options}
        return tables | {f"attacks[{number}]": attack for number, attack in enumerate(self.attacks)}

    def build(self, threat: ThreatModel) -> dict[str, EvaluationAttack]:
        """Returns the attacks in running order, by their keys in this table."""
        attacks = {key: table.build(threat, SHORT_FORMS.get(key, "")) for key, table in self.chosen.items()}
        labels = Counter(SHORT_FORMS.values())  # these are the short forms' own, on or off
        for key, attack in attacks.items():
            labels[attack.label] += attack.label != SHORT_FORMS.get(key)
            attack.number = labels[attack.label]
        return attacks

    def with_options(self, changed: dict[str, EvaluationAttackConfig]) -> EvaluationConfig:
        """Returns the table with changed options of attacks, by the keys of `chosen`."""
        further = [
            each.model_copy(update={"options": changed.get(f"attacks[{number}]", each.options)})
            for number, each in enumerate(self.attacks)
        ]
        short = {name: changed[name] for name in SHORT_FORMS if name in changed}
        return self.model_copy(update={**short, "attacks": further})

    def resolved(self, threat: ThreatModel) -> EvaluationConfig:
        """Returns the options with defaults from the threat model filled in.

        Raises:
            ValueError: the threat's epsilon is 0 and an attack has no radii of its own; or an attack does not support
                the threat model, such as AutoAttack under l0.
        """
        changed = {}
        for key, attack in self.chosen.items():
            if threat.epsilon == 0 and attack.options.wants_radii:
                raise ValueError(f"no radius follows from threat.epsilon = 0; give {key}.epsilons, or {key} = false")
            attack_class(attack.name).check_threat(attack.name, threat)
            changed[key] = attack.options.resolved(threat)
        return self.with_options(changed)

    def check_lengths(self, threat: ThreatModel) -> None:
        """Checks, after `resolved`, that all radii and steps are meaningful under a threat model.

        Raises:
            ValueError: one is not.
        """
        for attack in self.chosen.values():
            for radius in attack.options.radii:
                threat.check_radius(radius)
            threat.check_length(max(attack.options.lengths, default=0.0))

    def unmeasured(self, threat: ThreatModel) -> list[str]:
        """Returns a warning if there are attacks, but none at the threat's own radius."""
        radii = {format_radius(radius) for attack in self.chosen.values() for radius in attack.options.radii}
        if not radii or not threat.epsilon or format_radius(threat.epsilon) in radii:
            return []
        return [f"the evaluation lacks the radius of training, threat.epsilon = {format_radius(threat.epsilon)}"]
