"""Configs generated from the constructors of strategies written for CORDS."""

from __future__ import annotations

import functools
import inspect
import warnings
from inspect import Parameter
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, create_model, model_validator
from pydantic.errors import PydanticUserError

from robustcords.config.requirements import VALIDATION_IMAGES
from robustcords.config.schema import NotNegative
from robustcords.errors import UserError
from robustcords.selection._cords import GLISTERStrategy
from robustcords.selection.base import Granularity, StrategyConfig
from robustcords.selection.cords.strategy import GIVEN, CordsStrategy, UpstreamConfig
from robustcords.selection.gradient_based import SELECTION_TYPES
from robustcords.selection.gradient_based_config import AttackConfig
from robustcords.selection.gradients.adversarial_gradients import AdversarialGradients
from robustcords.selection.solvers.greedy import Greedy

_Functions = Literal["facility-location", "graph-cut", "sum-redundancy", "saturated-coverage"]

_KNOWN: dict[str, tuple[Any, Any]] = {
    "eta": (NotNegative, 0.05),
    "lam": (NotNegative, 0.5),
    "eps": (NotNegative, 1e-100),
    "r": (Annotated[int, Field(ge=1)], 15),
    "linear_layer": (bool, True),
    "greedy": (Greedy, "Stochastic"),
    "if_convex": (bool, False),
    "submod_func_type": (_Functions, "facility-location"),
    "optimizer": (str, "lazy"),
}
"""CORDS' own parameters: what they hold, and what they are where the signature has no default."""

_TYPES: dict[type, Any] = {bool: bool, int: int | float, float: float, str: str, list: list, dict: dict}
"""What an option holds whose default is of some type; TOML has no others."""

_FORMS = {
    "GLISTERStrategy": ("PerClass", "PerBatch", "Supervised"),
    "GradMatchStrategy": ("PerClass", "PerBatch", "PerClassPerGradient"),
    "CRAIGStrategy": ("PerClass", "PerBatch", "Supervised"),
    "SubmodularSelectionStrategy": ("PerClass", "Supervised"),
}
"""What CORDS' classes have as ``selection_type``; given another, they select everything at once, nothing, or fail."""

_GRANULARITIES: dict[Any, Granularity] = {name: granularity for granularity, name in SELECTION_TYPES.items()}


class CordsConfig(StrategyConfig):
    """Options of a strategy that is written for CORDS.

    Attributes:
        granularity: or ``selection_type``, with CORDS' name of it.
    """

    strategy_name: ClassVar[str] = ""
    forms: ClassVar[tuple[str, ...]] = ()  # none where the constructor has no selection_type, or one of its own

    @model_validator(mode="before")
    @classmethod
    def _read(cls, values: dict[str, Any]) -> dict[str, Any]:
        for key, field in cls.model_fields.items():
            if field.is_required() and key not in values and values.keys() <= cls.model_fields.keys():
                raise ValueError(f"{key} is missing: {cls.strategy_name}'s constructor has no default for it")
        if not cls.forms:
            return values
        values = dict(values)
        form = values.pop("selection_type", None)
        asked = values.setdefault("granularity", _GRANULARITIES.get(str(form), cls.model_fields["granularity"].default))
        named = next((name for name, granularity in _GRANULARITIES.items() if granularity == asked), form)
        if form and form != named:
            raise ValueError(f'granularity "{asked}" is {named}, and selection_type says "{form}"')
        if named and named not in cls.forms:
            known = ", ".join(cls.forms)
            raise ValueError(f'{cls.strategy_name} has no "{named}" (granularity "{asked}"); it has: {known}')
        return values


@functools.cache
def selector(strategy: type) -> type[CordsStrategy]:
    """Returns the one selector of a class that CORDS' code could use: configurations of two would not be equal.

    Raises:
        UserError: it has a parameter that neither a selection nor a recipe has a value for.
    """
    hooked = issubclass(strategy, AdversarialGradients)
    bases: Any = (CordsConfig, AttackConfig if hooked else UpstreamConfig)
    common = GIVEN.keys() | {name for base in bases for name in base.model_fields}
    parameters = _parameters(strategy)
    fields: dict[str, Any] = {}
    forms: tuple[str, ...] = ()
    for name, parameter in parameters.items():
        if name == "selection_type" and parameter.default in (None, Parameter.empty, *_GRANULARITIES):
            owner = next(base for base in strategy.__mro__ if "select" in vars(base))
            theirs = _FORMS.get(owner.__name__) if owner.__module__.startswith("cords.") else None
            forms = theirs or tuple(_GRANULARITIES)
            if parameter.default in _GRANULARITIES:
                fields["granularity"] = (Granularity, _GRANULARITIES[parameter.default])
        elif name not in common:
            fields |= _option(strategy, parameter)
    create: Any = create_model  # its types do not know of bases that come in a variable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that BaseModel has too
        config = create("Config", __base__=bases, __module__=__name__, **fields)
    config.strategy_name, config.forms = strategy.__name__, forms
    validates = issubclass(strategy, GLISTERStrategy)
    body = {
        "__doc__": inspect.getdoc(strategy),
        "__module__": __name__,
        "Config": config,
        "strategy": strategy,
        "parameters": tuple(parameters),
        "requires": getattr(strategy, "requires", frozenset({VALIDATION_IMAGES} if validates else ())),
        "needs_linear_head": "model" in parameters,
        "all_processes": hooked,
        "known_batches": bool(forms),
    }
    return type(strategy.__name__, (CordsStrategy,), body)


def _parameters(strategy: type) -> dict[str, Parameter]:
    """Returns the parameters of a class's constructor, those of its bases' too where it takes ``**options``."""
    found: dict[str, Parameter] = {}
    for owner in strategy.__mro__[:-1]:
        init: Any = vars(owner).get("__init__")
        if init is None:
            continue
        try:
            signature = inspect.signature(init, eval_str=True)
        except Exception:  # annotations that only a type checker imports the names of
            signature = inspect.signature(init)
        parameters = list(signature.parameters.values())[1:]
        kinds = {parameter.kind for parameter in parameters}
        whatever = Parameter.VAR_KEYWORD in kinds
        if Parameter.POSITIONAL_ONLY in kinds or (Parameter.VAR_POSITIONAL in kinds and not whatever):
            raise UserError(
                f"{strategy.__name__}: the constructor of {owner.__name__} takes arguments by position alone; "
                "let it name them, or take **options"
            )
        named = (each for each in parameters if each.kind not in {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD})
        found = {each.name: each for each in named} | found
        if not whatever:
            break
    return found


def _option(strategy: type, parameter: Parameter) -> dict[str, Any]:
    """Returns the option that a parameter makes; none where no TOML value fits, which is then left at its default."""
    name, default, kind = parameter.name, parameter.default, parameter.annotation
    known, usual = _KNOWN.get(name, (Any, ...))
    if default is Parameter.empty:
        default = False if name == "linear_layer" and issubclass(strategy, GLISTERStrategy) else usual
    default = list(default) if isinstance(default, tuple) else default
    fits = not name.startswith(("_", "model_config"))  # what pydantic lets a field be called
    if kind is Parameter.empty or isinstance(kind, str):
        fits &= name in _KNOWN or default is None or default is ... or type(default) in _TYPES
        kind = known if name in _KNOWN else _TYPES.get(type(default), Any)
    try:
        TypeAdapter(kind).json_schema()
    except PydanticUserError:
        fits = False
    if not fits and default is ...:
        wanted = f"nothing fills its constructor's parameter {name!r}, and a recipe cannot hold"
        raise UserError(f"{strategy.__name__}: {wanted} {getattr(kind, '__name__', kind)}")
    return {name: (kind | None if default is None else kind, Field(default, validate_default=False))} if fits else {}
