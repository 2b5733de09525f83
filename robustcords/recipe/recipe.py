"""Recipes: what a run is made of, read from TOML, checked table by table, and written back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import tomli_w
from pydantic import Field, SerializeAsAny, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from robustcords.config import registry
from robustcords.config.schema import ComponentConfig, Table, is_radius
from robustcords.errors import UserError, nearest
from robustcords.evaluation.config import EvaluationConfig
from robustcords.recipe import earlier, layers, messages
from robustcords.recipe.layers import Layer, Written, shipped
from robustcords.training.config import LoggingConfig, TrainConfig

if TYPE_CHECKING:
    from robustcords.data.base import DataConfig
    from robustcords.methods.efforts.bullet import BulletConfig
    from robustcords.selection.base import StrategyConfig
    from robustcords.threats.base import ThreatModel
else:  # these modules import torch; a recipe imports them when it is checked, and help never does
    BulletConfig = DataConfig = StrategyConfig = ThreatModel = Table

__all__ = ["EvaluationConfig", "LoggingConfig", "Recipe", "TrainConfig", "dump", "load", "parse", "shipped"]

DEFAULTS = {
    "attack": {"name": "pgd"},
    "callbacks": {"overfitting": {"action": "warn"}},
    "loss": {"name": "sat"},
    "method": {"name": "adversarial"},
    "optimizer": {"name": "sgd"},
    "schedule": {"name": "step"},
    "threat": {"norm": "linf"},
}
"""What is used where a recipe names nothing: standard adversarial training (Madry et al. 2018) on the full data."""

TABLES = {
    ("bullet",): "robustcords.methods.efforts.bullet:BulletConfig",
    ("train",): "robustcords.training.config:TrainConfig",
    ("train", "averaging"): "robustcords.training.averaging:AveragingConfig",
    ("evaluation",): "robustcords.evaluation.config:EvaluationConfig",
    ("logging",): "robustcords.training.config:LoggingConfig",
}
"""The tables that name no component, and the classes that check them, imported when a recipe is."""


class Recipe(Table):
    """Everything that a run depends on. `load` and `parse` make one.

    Attributes:
        seed: what every random number of the run is derived from.
        data: the images. As for the others below, a component's ``Config``.
        model: the classifier.
        threat: what the adversary may do, in training and in evaluation.
        attack: finds adversarial examples to train on.
        loss: what training minimises.
        method: what a training step does with a batch.
        selector: chooses the subset to train on; without it, training is on everything.
        bullet: attack steps by kind of example; without it, every example gets the attack's own.
        optimizer: how weights are updated.
        schedule: the learning rate over the run.
        train: epochs, batches, precision.
        callbacks: what reacts to training, a table for each; ``false`` switches one off.
        evaluation: what the finished model is tested with.
        logging: where figures go besides the run directory.
    """

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataConfig
    model: ComponentConfig
    threat: ThreatModel
    attack: ComponentConfig
    loss: ComponentConfig
    method: ComponentConfig
    selector: StrategyConfig | None = None
    bullet: BulletConfig | None = None
    optimizer: ComponentConfig
    schedule: ComponentConfig
    train: TrainConfig
    callbacks: dict[str, SerializeAsAny[ComponentConfig] | None] = Field(default_factory=dict)
    evaluation: EvaluationConfig
    logging: LoggingConfig

    @model_validator(mode="after")
    def _tables_agree(self) -> Self:
        train, held_out = self.train, self.data.validation_fraction
        if train.batch_size < train.accumulation:
            reason = f"more micro-batches than the {train.batch_size} images of a batch"
            raise _conflict(reason, "train.accumulation", "train.batch_size")
        if self.bullet and not find("method", self.method.name).varies_effort:
            raise _conflict(f"{self.method.name} attacks all images alike; set bullet = false", "method.name", "bullet")
        if "best" in self.evaluation.checkpoints and not held_out:
            reason = '"best" is chosen on validation images, and [data] validation_fraction is 0'
            raise _conflict(reason, "evaluation.checkpoints", "data.validation_fraction")
        if self.selector and not held_out and getattr(find("selector", self.selector.name), "needs_validation", False):
            reason = "selects with validation images, and [data] validation_fraction is 0"
            raise _conflict(reason, "selector.name", "data.validation_fraction")
        if getattr(self.attack, "random_start", "") == "none" and find("loss", self.loss.name).anchored:
            reason = f"the objective of {self.loss.name} has no gradient at the image itself"
            raise _conflict(reason, "attack.random_start", "loss.name")
        return self


def load(source: str | Path, overrides: Sequence[str] = (), *, of_run: bool = False) -> Recipe:
    """Reads and checks a recipe.

    Args:
        source: a TOML file, or the name of a shipped recipe; a file wins.
        overrides: ``"KEY=VALUE"``, dotted keys and TOML values; they win over the file.
        of_run: it is a run's own recipe.toml, which says what was done: steps and radii are taken as they are, also
            those that no new recipe may have. Only an l-infinity ``threat.epsilon`` above 1 is refused there too.

    Raises:
        UserError: one line that names file (or ``--set``), table and key, and says what is allowed.
    """
    files = layers.stack(source)
    return assemble([*files, *layers.overrides(overrides)], files[-1].origin, of_run=of_run)


def parse(values: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Checks a recipe that is a dictionary of tables, as TOML would give it (without ``extends``).

    Raises:
        UserError: as `load`; ``origin`` stands where the file would.
    """
    return assemble([Layer(origin, values)], origin)


def dump(recipe: Recipe) -> str:
    """Returns the recipe as TOML, with every default written out; `load` of it gives an equal recipe."""
    return tomli_w.dumps(_plain(recipe))


def find(kind: str, name: str) -> Any:
    """Returns the class of a component; data sets and models have names that no dictionary lists, such as paths.

    Raises:
        UserError: there is no such component, or its module cannot be imported.
    """
    try:
        source = registry.KINDS[kind].source
        return registry.imported(source)(name) if source else registry.find(kind, name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # somebody's own module may fail in any way while it is imported
        raise UserError(f"{kind} {name!r}: importing it failed: {type(error).__name__}: {error}") from error


def _conflict(reason: str, *keys: str) -> PydanticCustomError:
    """Returns the error that the first of some keys disagrees with the others."""
    return PydanticCustomError("conflict", "{reason}", {"reason": reason, "keys": [key.split(".") for key in keys]})


def assemble(stack: Sequence[Layer], origin: str, *, of_run: bool = False) -> Recipe:
    """Checks a recipe that consists of layers, the last one on top, and fills in what follows from the threat model.

    Raises:
        UserError: as `load`; ``origin`` is blamed for what no layer wrote.
    """
    stack = [replace(layer, values=earlier.moved(layer.values)) for layer in stack]
    tree = layers.merge([Layer("default", DEFAULTS), *stack])
    tables = tree.table or {}
    for key, item in tables.items():
        if key not in Recipe.model_fields:
            what = f"table [{messages.dotted([key])}]" if item.table is not None else f"key {messages.show(key)}"
            raise _problem(item.origin, f"unknown {what}{nearest(key, Recipe.model_fields)}")
    values = {key: tables.get(key, Written({}, origin, 0, 0)) for key in Recipe.model_fields if key != "seed"}
    values |= {key: tables.get(key, Written(None, origin, 0, 0)) for key in ("selector", "bullet")}
    checked = {key: _table(key, item) for key, item in values.items()}
    if "seed" in tables:
        checked["seed"] = tables["seed"].plain()
    if "checkpoints" not in (values["evaluation"].table or {}) and not checked["data"].validation_fraction:
        checked["evaluation"] = EvaluationConfig(**{**dict(checked["evaluation"]), "checkpoints": ["last"]})
    threat = checked["threat"]
    checked["attack"] = find("attack", checked["attack"].name).resolved(checked["attack"], threat)
    checked["bullet"] = checked["bullet"] and checked["bullet"].resolved(threat)
    if hasattr(checked["selector"], "resolved"):
        attack = checked["attack"]
        training = find("attack", attack.name)(threat, name=attack.name, **attack.options())
        # Version 0.1 gave steps without a size those of training, and its runs' recipes say no more than the steps.
        usual = getattr(attack, "step_size", None) if of_run else None
        checked["selector"] = checked["selector"].resolved(training, usual)
    try:
        checked["evaluation"] = checked["evaluation"].resolved(threat)
        recipe = Recipe(**checked)
        if not of_run:
            _refuse_weak(recipe)
    except ValidationError as error:
        raise _disagreement(error.errors(include_url=False)[0], checked, tree) from None
    except PydanticCustomError as error:
        problem = {"type": error.type, "msg": error.message(), "ctx": error.context}
        raise _disagreement(problem, checked, tree) from None
    except ValueError as error:
        raise _problem(tree.at(("threat", "epsilon")).origin, f"[evaluation] {error}") from None
    return recipe


def _refuse_weak(recipe: Recipe) -> None:
    """Checks that steps and radii are what can have been meant.

    Raises:
        PydanticCustomError: a radius or step is longer than any that means something, or PGD's steps do not reach a
            radius.
    """
    # Radii first: a step that is too large may only follow from one.
    for key, values in sorted(_radii(recipe, ""), key=lambda item: not item[0].endswith("epsilons")):
        try:
            recipe.threat.check_radius(max(values))
        except ValueError as error:
            raise _conflict(str(error), key, "threat.norm") from None
    if recipe.evaluation.pgd and (reason := recipe.evaluation.pgd.falls_short):
        keys = ("step_size", "steps", "epsilons")
        raise _conflict(reason, *(f"evaluation.pgd.{key}" for key in keys), "threat.epsilon")


def _radii(table: Table, above: str) -> Iterator[tuple[str, list[float]]]:
    """Yields the dotted key and the values of everything in a table that is a radius or a step."""
    for key, field in type(table).model_fields.items():
        value = getattr(table, key)
        if isinstance(value, Table):
            yield from _radii(value, f"{above}{key}.")
        elif value is not None and is_radius(field.annotation, field.metadata):
            yield f"{above}{key}", value if isinstance(value, list) else [value]


def _disagreement(problem: Any, checked: dict[str, Any], tree: Written) -> UserError:
    """Returns the error for a value of the shell's own, or for tables that disagree with each other."""
    keys = problem.get("ctx", {}).get("keys") or [problem["loc"]]
    value: Any = checked[keys[0][0]]
    for key in keys[0][1:]:
        value = getattr(value, key)
    reason = problem["msg"] if problem["type"] == "conflict" else f"must be {messages.allowed(Recipe, tuple(keys[0]))}"
    # What was written last is what made them disagree.
    origin = max((tree.at(key) for key in keys), key=lambda item: item.layer).origin
    return _problem(origin, f"{messages.place(keys[0])} = {messages.show(value)}: {reason}")


def _table(key: str, item: Written) -> Any:
    """Returns a checked table; None for one that is switched off."""
    if key == "callbacks" and item.table is not None:
        return {name: _callback(name, below) for name, below in item.table.items()}
    switch = (key,) in layers.SWITCHES
    if switch and (item.value is None or item.value is False):
        return None
    if item.table is None:
        or_off = " or false" if switch else ""
        raise _problem(item.origin, f"{messages.place([key])} = {messages.show(item.value)}: must be a table{or_off}")
    if key in registry.KINDS:
        config = _config(key, item.table, item.origin)
        return _checked(config, _known(key, item, config), (key,))
    return _checked(registry.imported(TABLES[key,]), item, (key,))


def _callback(name: str, item: Written) -> Any:
    """Returns a callback's checked table, which the key names; None where it is switched off."""
    where = ("callbacks", name)
    if item.value is None or item.value is False:
        return None
    if item.table is None:
        raise _problem(item.origin, f"{messages.place(where)} = {messages.show(item.value)}: must be a table or false")
    named = replace(item, value=name)
    config = _class("callback", named, messages.place(where))
    return _checked(config, replace(item, value={**item.table, "name": named}), where)


def _config(kind: str, table: dict[str, Written], origin: str) -> type[Table]:
    """Returns the ``Config`` of the component that a table names."""
    key = registry.KINDS[kind].key
    if key not in table:
        raise _problem(origin, f"[{kind}] {key} is missing")
    name = table[key]
    where = f"[{kind}] {key} = {messages.show(name.plain())}"
    if not isinstance(name.value, str):
        raise _problem(name.origin, f"{where}: must be a string")
    return _class(kind, name, where)


def _class(kind: str, name: Written, where: str) -> type[Table]:
    """Returns the ``Config`` of a component by its name.

    Args:
        kind: of the component.
        name: a string.
        where: what a message begins with.
    """
    try:
        found = find(kind, name.value)
    except UserError as error:
        raise _problem(name.origin, f"{where}: {error}") from error
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise _problem(name.origin, f"{where}: {found.__name__} lacks {' and '.join(missing)}")
    config = registry.config_of(found)
    base = registry.imported(registry.KINDS[kind].base)
    fits = any(isinstance(each, type) and issubclass(each, base) for each in (found, config))
    if not (fits and isinstance(config, type) and issubclass(config, Table)):
        raise _problem(
            name.origin, f"{where}: not of kind {kind}; it needs a nested Config, and {base.__name__} as its base"
        )
    return config


def _known(kind: str, item: Written, config: type[Table]) -> Written:
    """Drops what was written for the component that a later layer replaced by another one.

    Options that both have from a common base stay, such as a selector's fraction. Others may have the same name and
    mean something else: PGD's step size is none for FGSM, and TRADES' beta none for MART.
    """
    table = item.table or {}
    name = table[registry.KINDS[kind].key]
    everybodys = registry.config_of(registry.imported(registry.KINDS[kind].base))

    def stays(key: str) -> bool:
        if key not in config.model_fields:
            return False
        origin = _origin(config, key)
        # The old component is asked last, as that imports it, and with it perhaps packages that the recipe needs not.
        return (
            name.before is None or issubclass(everybodys, origin) or issubclass(_config_of(kind, name.before), origin)
        )

    kept = {key: value for key, value in table.items() if value.layer >= name.since or stays(key)}
    return Written(kept, item.origin, item.layer, item.since)


def _config_of(kind: str, name: Any) -> type[Any]:
    """Returns the ``Config`` of a component that is no longer wanted; ``object`` where that cannot be told."""
    try:
        config = registry.config_of(find(kind, name))
    except (UserError, TypeError, AttributeError):
        return object
    return config if isinstance(config, type) else object


def _origin(config: type[Table], key: str) -> type[Any]:
    """Returns the base class that a field comes from."""
    return next(each for each in reversed(config.__mro__) if key in getattr(each, "model_fields", ()))


def _checked(config: type[Table], item: Written, path: tuple[str, ...]) -> Table:
    """Checks one table, and first those tables in it that are checked by classes of their own."""
    values = item.plain()
    for key, below in (item.table or {}).items():
        if (*path, key) in TABLES and below.table is not None:
            values[key] = _checked(registry.imported(TABLES[*path, key]), below, (*path, key))
    try:
        return config.model_validate(values)
    except ValidationError as error:
        blamed, text = messages.explain(error, config, values, path)
    raise _problem(item.at(blamed[len(path) :]).origin, text)


def _problem(origin: str, text: str) -> UserError:
    return UserError(f"{origin}: {layers.shortened(text, longest=2000)}")


def _plain(table: Table) -> dict[str, Any]:
    """Returns a table as TOML values; None, which TOML has no word for, is left out."""
    written = table.model_dump()
    values = {key: getattr(table, key) for key in type(table).model_fields}
    plain = {key: _plain(value) if isinstance(value, Table) else written[key] for key, value in values.items()}
    if isinstance(table, Recipe):
        plain["callbacks"] = {name: _options(config) for name, config in table.callbacks.items()}
    return {key: value for key, value in plain.items() if value is not None}


def _options(config: ComponentConfig | None) -> Any:
    """Returns a callback's table without its name, which is the table's own; false for one that is switched off."""
    return False if config is None else {key: value for key, value in _plain(config).items() if key != "name"}
