"""The options of a strategy that is written for CORDS, read from its constructor."""

from __future__ import annotations

import inspect
import warnings
from inspect import Parameter
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, TypeAdapter, create_model, model_validator
from pydantic.errors import PydanticUserError

from robustcords.errors import UserError
from robustcords.selection.base import Granularity, StrategyConfig
from robustcords.selection.cords._cords import GLISTERStrategy
from robustcords.selection.cords.upstream import UpstreamConfig
from robustcords.selection.gradient_based import SELECTION_TYPES, AdversarialConfig
from robustcords.selection.solvers.greedy import Method

CONTEXT = {
    "trainloader": "trainloader",
    "valloader": "valloader",
    "model": "model",
    "loss": "loss",
    "loss_func": "loss",
    "loss_type": "loss",
    "device": "device",
    "num_classes": "num_classes",
    "logger": "logger",
    "attack": "attack",
    "seed": "seed",
    "on_batch": "on_batch",
}
"""The parameters that a selection has values for, and which value each one gets."""

_Positive = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Functions = Literal["facility-location", "graph-cut", "sum-redundancy", "saturated-coverage"]

_KNOWN: dict[str, tuple[Any, Any]] = {
    "eta": (_Positive, 0.05),
    "lam": (_Positive, 0.5),
    "eps": (_Positive, 1e-100),
    "r": (Annotated[int, Field(ge=1)], 15),
    "linear_layer": (bool, True),
    "greedy": (Method, "Stochastic"),
    "if_convex": (bool, False),
    "submod_func_type": (_Functions, "facility-location"),
    "optimizer": (str, "lazy"),
}
"""CORDS' own parameters: what they hold, and what they are where the signature has no default."""

_FORMS = {
    "GLISTERStrategy": ("PerClass", "PerBatch", "Supervised"),
    "GradMatchStrategy": ("PerClass", "PerBatch", "PerClassPerGradient"),
    "CRAIGStrategy": ("PerClass", "PerBatch", "Supervised"),
    "SubmodularSelectionStrategy": ("PerClass", "Supervised"),
}
"""What CORDS' classes have as ``selection_type``; given another, they select everything at once, nothing, or fail."""

_GRANULARITIES = {name: granularity for granularity, name in SELECTION_TYPES.items()}

_create: Any = create_model  # its types do not know of bases that come in a variable


class CordsConfig(StrategyConfig):
    """Options of a strategy that is written for CORDS.

    Attributes:
        granularity: sets ``selection_type``, where the strategy has that parameter and it is left out.
        selection_type: CORDS' name of the granularity, or one of the strategy's own.
    """

    strategy_name: ClassVar[str] = ""
    selection_types: ClassVar[tuple[str, ...]] = ()

    @property
    def used_selection_type(self) -> str:
        """The ``selection_type`` that CORDS gets."""
        return getattr(self, "selection_type", None) or SELECTION_TYPES[self.granularity]

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.keys() <= cls.model_fields.keys():
            return values
        required = [key for key, field in cls.model_fields.items() if field.is_required() and key != "name"]
        if lacking := [key for key in required if key not in values]:
            raise ValueError(f"{lacking[0]} is missing: {cls.strategy_name}'s constructor has no default for it")
        chosen = values.get("selection_type")
        if isinstance(chosen, str) and chosen in _GRANULARITIES:
            return {"granularity": _GRANULARITIES[chosen], **values}
        return values

    @model_validator(mode="after")
    def _has_the_form(self) -> Self:
        if "selection_type" not in type(self).model_fields:
            return self
        named = SELECTION_TYPES[self.granularity]
        if self.used_selection_type in SELECTION_TYPES.values() and self.used_selection_type != named:
            raise ValueError(
                f'granularity "{self.granularity}" is {named}, and selection_type says "{self.used_selection_type}"'
            )
        if self.selection_types and self.used_selection_type not in self.selection_types:
            known = ", ".join(self.selection_types)
            asked = f'"{self.used_selection_type}" (granularity "{self.granularity}")'
            raise ValueError(f"{self.strategy_name} has no {asked}; it has: {known}")
        return self


def parameters_of(strategy: type) -> dict[str, Parameter]:
    """Returns the parameters of a class's constructor by name, those of its bases' too where it takes ``**options``.

    Raises:
        UserError: a constructor takes some by position alone, so that they have no names.
    """
    found: dict[str, Parameter] = {}
    for owner in strategy.__mro__:
        if "__init__" not in vars(owner) or owner is object:
            continue
        parameters = list(_signature(owner).parameters.values())[1:]
        kinds = {parameter.kind for parameter in parameters}
        whatever = Parameter.VAR_KEYWORD in kinds
        if Parameter.POSITIONAL_ONLY in kinds or (Parameter.VAR_POSITIONAL in kinds and not whatever):
            raise UserError(
                f"{strategy.__name__}: the constructor of {owner.__name__} takes arguments by position alone; "
                "let it name them, or take **options"
            )
        for parameter in parameters:
            if parameter.kind not in {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
                found.setdefault(parameter.name, parameter)
        if not whatever:
            break
    return found


def options_of(strategy: type, parameters: dict[str, Parameter], *, adversarial: bool) -> type[CordsConfig]:
    """Returns the table of a recipe that a class's parameters make.

    Args:
        strategy: the class.
        parameters: those of its constructor.
        adversarial: whether it attacks the data, and has the options of that.

    Raises:
        UserError: no TOML value can be what a parameter without a default is annotated with.
    """
    bases: tuple[Any, ...] = (CordsConfig, AdversarialConfig if adversarial else UpstreamConfig)
    shared = {key for base in bases for key in base.model_fields}
    fields: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if name == "selection_type":
            fields |= _form_fields(parameter)
        elif name not in CONTEXT and name not in shared:
            fields |= _field(strategy, parameter)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that BaseModel has too
            config = _create("Config", __base__=bases, __module__=__name__, **fields)
    except (NameError, PydanticUserError) as error:
        raise UserError(f"{strategy.__name__}: its constructor's parameters cannot be options: {error}") from error
    owner = next((base for base in strategy.__mro__ if "select" in vars(base)), strategy)
    config.strategy_name = strategy.__name__
    config.selection_types = _FORMS.get(owner.__name__, ()) if owner.__module__.startswith("cords.") else ()
    made: type[CordsConfig] = config
    return made


def _form_fields(parameter: Parameter) -> dict[str, Any]:
    fields: dict[str, Any] = {"selection_type": (str | None, None)}
    if isinstance(parameter.default, str) and parameter.default in _GRANULARITIES:
        fields["granularity"] = (Granularity, _GRANULARITIES[parameter.default])
    elif isinstance(parameter.default, str):
        fields["selection_type"] = (str | None, parameter.default)
    return fields


def _field(strategy: type, parameter: Parameter) -> dict[str, Any]:
    """Returns the option that a parameter makes; none where no TOML value fits, which is then left at its default."""
    name, default = parameter.name, parameter.default
    kind = _kind(parameter)
    if kind is None:
        if default is Parameter.empty:
            raise UserError(
                f"{strategy.__name__}: nothing fills its constructor's parameter {name!r}, and a recipe cannot hold "
                f"{getattr(parameter.annotation, '__name__', parameter.annotation)}"
            )
        return {}
    if default is Parameter.empty:
        default = _default(strategy, name)
    if default is None:
        kind = kind | None
    elif isinstance(default, tuple):
        default = list(default)
    return {name: (kind, Field(default, validate_default=False))}


def _default(strategy: type, name: str) -> Any:
    """Returns what this package uses for a parameter that CORDS has no default for; ``...`` where it is not CORDS'."""
    if name == "linear_layer" and issubclass(strategy, GLISTERStrategy):
        return False
    return _KNOWN[name][1] if name in _KNOWN else ...


def _kind(parameter: Parameter) -> Any:
    """Returns the type of an option, or None where TOML has no such value."""
    annotation, default = parameter.annotation, parameter.default
    if annotation is not Parameter.empty and not isinstance(annotation, str):
        try:
            TypeAdapter(annotation).json_schema()
        except PydanticUserError:
            return None
        return annotation
    if parameter.name in _KNOWN:
        return _KNOWN[parameter.name][0]
    if default is Parameter.empty or default is None:
        return Any
    kinds: dict[type, Any] = {
        bool: bool,
        int: int | float,
        float: float,
        str: str,
        list: list[Any],
        tuple: list[Any],
        dict: dict[str, Any],
    }
    return kinds.get(type(default))


def _signature(owner: Any) -> inspect.Signature:
    try:
        return inspect.signature(owner.__init__, eval_str=True)
    except Exception:  # annotations that only a type checker imports the names of
        return inspect.signature(owner.__init__)
