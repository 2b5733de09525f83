"""The schema that all tables of a recipe share: a strict base class, radii as fractions, named components."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
)
from pydantic_core import CoreSchema, core_schema

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(s|min|h)")
_UNITS = {"s": 1, "min": 60, "h": 3600}
_LONGEST_S = 10**9
_MOST = 1e6
"""Radii from here on are not looked at for whole pixel steps, of which a float cannot tell."""
_FRACTION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*/\s*(\d+(?:\.\d*)?|\.\d+)\s*")


def parse_radius(value: Any) -> Any:
    """Turns ``"8/255"`` into ``8 / 255``; leaves everything else to the field's own validation.

    Raises:
        ValueError: for a string that is neither a number nor a fraction with a positive denominator.
    """
    if not isinstance(value, str):
        return value
    fraction = _FRACTION.fullmatch(value)
    if fraction and float(fraction[2]) > 0:
        return float(fraction[1]) / float(fraction[2])
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a number or a fraction such as '8/255'") from None


def format_radius(value: float) -> str:
    """Writes a radius as people do: ``"0.15"`` where that is short, else ``"8/255"`` for whole pixel steps."""
    decimal = repr(float(value))
    pixels = round(value * 255) if value < _MOST else 0
    if len(decimal) > 6 and pixels and abs(value * 255 - pixels) < 1e-9:
        return f"{pixels}/255"
    return decimal


def rounded_radius(value: float) -> float:
    """Returns a computed radius or step without its computation's rounding, so that it has the name people give it.

    ``2.5 * (8 / 255) / 10`` becomes ``2 / 255`` to the last bit, and ``2.5 * 0.15 / 10`` becomes 0.0375.
    """
    pixels = round(value * 255) if value < _MOST else 0
    return pixels / 255 if pixels and abs(value * 255 - pixels) < 1e-9 else float(f"{value:.12g}")


def _dump_radius(value: float) -> str | float:
    return text if "/" in (text := format_radius(value)) else value


_AS_RADIUS = (
    BeforeValidator(parse_radius),
    PlainSerializer(_dump_radius),
    Field(json_schema_extra={"format": "radius"}),
)

Radius = Annotated[float, Field(ge=0, allow_inf_nan=False), *_AS_RADIUS]
"""A radius or step in pixel space, where 1 is the whole range: a number >= 0, or a fraction such as ``"8/255"``."""

PositiveRadius = Annotated[float, Field(gt=0, allow_inf_nan=False), *_AS_RADIUS]
"""A `Radius` > 0."""

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number >= 0."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A finite number > 0."""

Share = Annotated[float, Field(gt=0, le=1)]
"""A share of something, in (0, 1]."""


def _rising(values: tuple[float, ...]) -> tuple[float, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("must rise")
    return values


Milestones = Annotated[tuple[Share, ...], Field(strict=False), AfterValidator(_rising)]
"""Shares of a run, rising, each in (0, 1]."""


def milestones_passed(milestones: Sequence[float], epoch: float, epochs: float) -> int:
    """Returns how many milestones an epoch begins at or after.

    Args:
        milestones: see `Milestones`.
        epoch: epochs that have passed.
        epochs: of the whole run.
    """
    # 0.55 * 100 is a little more than 55; a milestone must not miss its epoch for that.
    return sum(epoch >= milestone * epochs - 1e-9 for milestone in milestones)


def is_radius(annotation: Any, metadata: Sequence[Any] = ()) -> bool:
    """Returns whether a field is a `Radius`, may be one, or is a list of some.

    Args:
        annotation: the field's type.
        metadata: what pydantic keeps of the type in addition.
    """
    if any(isinstance(mark, BeforeValidator) and mark.func is parse_radius for mark in metadata):
        return True
    return any(is_radius(part, getattr(part, "__metadata__", ())) for part in get_args(annotation))


def parse_duration(value: Any) -> Any:
    """Turns ``"10 min"`` into a timedelta; leaves everything else to the field's own validation.

    Raises:
        ValueError: for a string that is not a positive number and a unit.
    """
    if not isinstance(value, str):
        return value
    found = _DURATION.fullmatch(value.strip())
    if not found or not 0 < float(found[1]) * _UNITS[found[2]] < _LONGEST_S:
        raise ValueError(f"{value!r} is not a duration such as '90 s', '10 min' or '1.5 h'")
    return timedelta(seconds=float(found[1]) * _UNITS[found[2]])


def _dump_duration(value: timedelta) -> str:
    seconds = value.total_seconds()
    unit = next((unit for unit in ("h", "min") if seconds % _UNITS[unit] == 0), "s")
    return f"{seconds / _UNITS[unit]:.12g} {unit}"


Duration = Annotated[timedelta, BeforeValidator(parse_duration), PlainSerializer(_dump_duration)]
"""A length of time: a number and ``s``, ``min`` or ``h``, such as ``"10 min"``."""


@dataclass(frozen=True)
class OrFalse:
    """That a key may be ``false``, as metadata of its field, whose type has None: ``Annotated[int | None, OrFalse()]``.

    TOML has no null: ``false`` is read as None.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_none_for_false, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        value = handler(schema)
        branches = [branch for branch in value.get("anyOf", [value]) if branch.get("type") != "null"]
        return {"anyOf": [*branches, {"const": False}]}


def _none_for_false(value: Any) -> Any:
    return None if value is False else value


class Table(BaseModel):
    """A table of a recipe: unknown keys and wrong types are errors, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


_Options = TypeVar("_Options", bound=Table)
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Role:
    """What another value of a key means, as metadata of its field: ``Annotated[bool, Role("computation")]``.

    Attributes:
        of: ``"method"``: runs that differ in it are of two methods. ``"computation"``: how steps are computed, which up
            to rounding makes no difference but to the time. ``"record"``: what is measured or kept, and when.
            ``"repetition"``: what tells runs of one method apart, as seeds do.
        changeable: whether a run may be resumed with another value.
    """

    of: Literal["method", "computation", "record", "repetition"] = "method"
    changeable: bool = False


@dataclass(frozen=True)
class Names:
    """That a key holds the table of another component, as metadata of its field: ``Annotated[..., Names("method")]``.

    Attributes:
        kind: of the component, as `robustcords.config.registry.KINDS` has it.
    """

    kind: str


def with_defaults(config: _Options, **defaults: Any) -> _Options:
    """Returns a table with the keys filled in that are left out, which are None."""
    missing = {key: value for key, value in defaults.items() if getattr(config, key) is None}
    return config.model_copy(update=missing) if missing else config


def filled_in(value: _Value | None) -> _Value:
    """Returns an option that `Component.resolved` has filled in where it was left out."""
    assert value is not None
    return value


def nested(table: type[Table]) -> dict[str, str]:
    """Returns the keys of a table that hold another component's table, and that component's kind."""
    marks = ((key, mark) for key, field in table.model_fields.items() for mark in field.metadata)
    return {key: mark.kind for key, mark in marks if isinstance(mark, Names)}


def roles(table: type[Table]) -> dict[str, Role]:
    """Returns the role of every key of a table; where a field does not say, a part of the method for good."""
    return {
        key: next((mark for mark in field.metadata if isinstance(mark, Role)), Role())
        for key, field in table.model_fields.items()
    }


class ComponentConfig(Table):
    """The table of a component that a recipe names: its name, and the options that its own subclass declares."""

    name: str

    def options(self) -> dict[str, Any]:
        """Returns the component's keyword arguments: every field but the name, as Python values."""
        return {key: getattr(self, key) for key in type(self).model_fields if key != "name"}


class Stateful:
    """What a checkpoint keeps the state of. One that has a state writes both methods."""

    @classmethod
    def half_written(cls) -> str | None:
        """Returns which method is missing where a subclass writes one of the two alone; None where it does not."""
        methods = ("state_dict", "load_state_dict")
        written = [name for name in methods if getattr(cls, name) is not getattr(Stateful, name)]
        if len(written) != 1:
            return None
        missing = next(name for name in methods if name not in written)
        return f"{written[0]} is written, and {missing} is not"

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint has to keep: tensors, numbers, strings and None, in dicts and lists."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave.

        Args:
            state: a copy as a checkpoint gives it back: tensors on the CPU, lists in place of tuples, Python's numbers
                in place of NumPy's.
        """
        if state:
            raise NotImplementedError("state_dict is written, and load_state_dict is not")


class Component:
    """A part that a recipe names. Its nested ``Config`` owns the options, their ranges and their defaults.

    A component is built as ``Class(*context, **options)``; the options are validated in the constructor, so Python
    users meet the same checks as recipes.

    Attributes:
        requires: what it cannot do without, in the words of `robustcords.config.requirements`. A recipe in which
            nothing provides it is refused.
        provides: what others may require.

    Raises:
        pydantic.ValidationError: for an option that ``Config`` does not accept.
    """

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig
    config: ComponentConfig
    requires: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, **options: Any) -> None:
        """Validates the options against ``Config``."""
        self.config = self.Config(name=options.pop("name", type(self).__name__), **options)

    @classmethod
    def resolved(cls, config: Any, threat: Any) -> Any:
        """Returns the options with those filled in that follow from the threat model where they are left out.

        A recipe asks attacks, efforts, losses and methods for this, so that what it is written back as says every step
        size. Here nothing follows.

        Args:
            config: the component's ``Config``.
            threat: the run's `robustcords.threats.base.ThreatModel`.
        """
        del threat
        return config
