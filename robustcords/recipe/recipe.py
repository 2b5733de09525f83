"""`Recipe`: read from TOML, validated table by table, and written back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import tomli_w
from pydantic import Field, SerializeAsAny, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from robustcords.config import registry
from robustcords.config.schema import ComponentConfig, OrFalse, Role, Table, is_radius, nested
from robustcords.errors import UserError, nearest
from robustcords.recipe import compatibility, layers, messages, renamed_keys
from robustcords.recipe.layers import Layer, Written, shipped
from robustcords.recipe.short_forms import SHORT_FORMS
from robustcords.recipe.tables import DEFAULTS, check_all, find, options_of, problem
from robustcords.training.config import LoggingConfig, TrainConfig

if TYPE_CHECKING:
    from robustcords.data.base import DataConfig
    from robustcords.evaluation.config import EvaluationConfig
    from robustcords.selection.base import StrategyConfig
    from robustcords.threats.base import ThreatModel
else:  # these modules import torch; a recipe imports them when it is checked, and help never does
    DataConfig = EvaluationConfig = StrategyConfig = ThreatModel = Table

__all__ = ["LoggingConfig", "Recipe", "TrainConfig", "dump", "load", "parse", "shipped"]


class Recipe(Table):
    """Everything that a run depends on. `load` and `parse` make one.

    Attributes:
        seed: determines every random number of the run.
        data: the images to train and test on.
        augmentation: random changes of training images.
        model: the classifier.
        threat: the perturbations that the adversary may make, in training and in evaluation.
        attack: finds the adversarial examples to train on.
        loss: the function that training minimises.
        method: what a training step does with a batch.
        effort: how strongly each example is attacked in training.
        selector: chooses the subset to train on; left out or ``false``, every epoch trains on all data.
        optimizer: how weights are updated.
        schedule: the learning rate over the run.
        train: length, batches, precision, checkpoints.
        callbacks: observers of training, a table for each; ``false`` switches one off.
        evaluation: the attacks that the finished model is tested with.
        logging: experiment trackers that receive the metrics too.
    """

    seed: Annotated[int, Field(ge=0, lt=2**32), Role("repetition")] = 0
    data: DataConfig
    augmentation: ComponentConfig
    model: ComponentConfig
    threat: ThreatModel
    attack: ComponentConfig
    loss: ComponentConfig
    method: ComponentConfig
    effort: ComponentConfig
    selector: Annotated[StrategyConfig | None, OrFalse()] = None
    optimizer: ComponentConfig
    schedule: ComponentConfig
    train: TrainConfig
    callbacks: Annotated[dict[str, SerializeAsAny[ComponentConfig] | None], Role("record")] = Field(
        default_factory=dict
    )
    evaluation: Annotated[EvaluationConfig, Role("record")]
    logging: LoggingConfig

    @model_validator(mode="after")
    def _tables_agree(self) -> Self:
        train, held_out = self.train, self.data.validation_fraction
        if train.batch_size < train.accumulation:
            reason = f"more micro-batches than the {train.batch_size} images of a batch"
            raise _conflict(reason, "train.accumulation", "train.batch_size")
        if "best" in self.evaluation.checkpoints and not held_out:
            reason = '"best" is chosen on validation images, and [data] validation_fraction is 0'
            raise _conflict(reason, "evaluation.checkpoints", "data.validation_fraction")
        if missing := compatibility.missing(list(_components(self)), held_out=bool(held_out), compiled=train.compile):
            raise _conflict(*missing)
        at_image = getattr(self.attack, "random_start", "") == "none"
        losses = getattr(self.attack, "objective", "loss") == "loss"
        if at_image and losses and find("loss", self.loss.name).relative_to_clean:
            reason = f"the objective of {self.loss.name} has no gradient at the image itself"
            raise _conflict(reason, "attack.random_start", "loss.name")
        return self

    def with_train(self, **values: Any) -> Self:
        """Returns the recipe with other values of ``[train]``, which are not checked."""
        return self.model_copy(update={"train": self.train.model_copy(update=values)})


def load_recipe(source: str | Path, overrides: Sequence[str] = (), *, of_run: bool = False) -> Recipe:
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


load = load_recipe
"""Its name as `robustcords.recipe.load`."""


def parse(values: dict[str, Any], origin: str = "recipe") -> Recipe:
    """Checks a recipe that is a dictionary of tables, as TOML would give it (without ``extends``).

    Raises:
        UserError: as `load`; ``origin`` stands where the file would.
    """
    return assemble([Layer(origin, values)], origin)


def dump(recipe: Recipe) -> str:
    """Returns the recipe as TOML, with every default written out; `load` of it gives an equal recipe."""
    return tomli_w.dumps(_plain(recipe))


def _components(table: Table, above: str = "") -> Iterator[compatibility.NamedComponent]:
    """Yields the components that a recipe names, and those that they name themselves."""
    fields = type(table).model_fields
    kinds = nested(type(table)) if above else {kind: kind for kind in registry.KINDS if kind in fields}
    for key, kind in kinds.items():
        if (config := getattr(table, key)) is not None:
            name = registry.KINDS[kind].key
            yield compatibility.NamedComponent(kind, f"{above}{key}.{name}", find(kind, getattr(config, name)), config)
            yield from _components(config, f"{above}{key}.")


def _conflict(reason: str, *keys: str) -> PydanticCustomError:
    """Returns the error that the first of some keys disagrees with the others."""
    paths = [[int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", key)] for key in keys]
    return PydanticCustomError("conflict", "{reason}", {"reason": reason, "keys": paths})


def assemble(stack: Sequence[Layer], origin: str, *, of_run: bool = False) -> Recipe:
    """Checks a recipe that consists of layers, the last one on top, and fills in what follows from the threat model.

    Raises:
        UserError: as `load`; ``origin`` is blamed for what no layer wrote.
    """
    stack = [_moved(layer) for layer in stack]
    tree = layers.merge([Layer("default", DEFAULTS), *stack])
    tables = tree.table or {}
    unknown = [_unknown(key, item) for key, item in tables.items() if key not in Recipe.model_fields]
    values = {key: tables.get(key, Written({}, origin, 0, 0)) for key in Recipe.model_fields if key != "seed"}
    values["selector"] = tables.get("selector", Written(None, origin, 0, 0))
    checked = check_all(values, unknown)
    if "seed" in tables:
        checked["seed"] = tables["seed"].plain()
    if "checkpoints" not in (values["evaluation"].table or {}) and not checked["data"].validation_fraction:
        checked["evaluation"] = checked["evaluation"].model_copy(update={"checkpoints": ["last"]})
    threat = checked["threat"]
    for kind in ("attack", "effort", "loss", "method"):
        checked[kind] = find(kind, checked[kind].name).resolved(checked[kind], threat)
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
        conflict = {"type": error.type, "msg": error.message(), "ctx": error.context}
        raise _disagreement(conflict, checked, tree) from None
    except ValueError as error:
        raise problem(tree.at(("threat", "epsilon")).origin, f"[evaluation] {error}") from None
    return recipe


def _unknown(key: str, item: Written) -> UserError:
    """Returns the error for a key or table at the root that no recipe has."""
    what = f"table [{messages.dotted([key])}]" if item.table is not None else f"key {messages.show(key)}"
    return problem(item.origin, f"unknown {what}{nearest(key, [*Recipe.model_fields, *SHORT_FORMS])}")


def _moved(layer: Layer) -> Layer:
    """Returns a layer with every key where this version has it."""
    try:
        return replace(layer, values=renamed_keys.moved(layer.values))
    except ValueError as error:
        raise problem(layer.origin, str(error)) from None


def _refuse_weak(recipe: Recipe) -> None:
    """Checks that steps and radii are what can have been meant.

    Raises:
        PydanticCustomError: a radius or step is longer than any that means something, or PGD's steps do not reach a
            radius.
    """
    # Radii first: a step that is too large may only follow from one.
    for key, values in sorted(_radii(recipe, ""), key=lambda item: not item[0].endswith("epsilons")):
        check = recipe.threat.check_radius if key.endswith("epsilons") else recipe.threat.check_length
        try:
            for value in values:
                check(value)
        except ValueError as error:
            raise _conflict(str(error), key, "threat.norm") from None
    for place, attack in recipe.evaluation.chosen.items():
        if reason := attack.options.falls_short:
            raise _conflict(reason, *(f"evaluation.{place}.{key}" for key in attack.options.blamed), "threat.epsilon")


def _radii(table: Table, above: str) -> Iterator[tuple[str, list[float]]]:
    """Yields the dotted key and the values of everything in a table that is a radius or a step."""
    for key, field in type(table).model_fields.items():
        value = getattr(table, key)
        if isinstance(value, list):
            for number, entry in enumerate(value):
                yield from _radii(options_of(entry), f"{above}{key}[{number}].") if isinstance(entry, Table) else ()
        if isinstance(value, Table):
            yield from _radii(value, f"{above}{key}.")
        elif value is not None and is_radius(field.annotation, field.metadata):
            yield f"{above}{key}", value if isinstance(value, list) else [value]


def _disagreement(found: Any, checked: dict[str, Any], tree: Written) -> UserError:
    """Returns the error for a value of the shell's own, or for tables that disagree with each other."""
    keys = found.get("ctx", {}).get("keys") or [found["loc"]]
    value: Any = checked[keys[0][0]]
    for key in keys[0][1:]:
        value = value[key] if isinstance(key, int) else getattr(value, key)
        value = options_of(value)
    reason = found["msg"] if found["type"] == "conflict" else f"must be {messages.allowed(Recipe, tuple(keys[0]))}"
    # What was written last is what made them disagree.
    origin = max((tree.at(key) for key in keys), key=lambda item: item.layer).origin
    table, *path = keys[0]
    short = tree.at([table]).spelled if path != ["name"] else ""  # which names its component itself
    place = messages.place([short or table, *path])
    return problem(origin, f"{place} = {messages.show(value)}: {reason}")


def _plain(table: Table) -> dict[str, Any]:
    """Returns a table as TOML values; None, which TOML has no word for, is left out."""
    written = table.model_dump()
    values = {key: getattr(table, key) for key in type(table).model_fields}
    plain = {key: _plain(value) if isinstance(value, Table) else written[key] for key, value in values.items()}
    if isinstance(table, Recipe):
        plain["callbacks"] = {name: _without_name(config) for name, config in table.callbacks.items()}
    return {key: value for key, value in plain.items() if value is not None}


def _without_name(config: ComponentConfig | None) -> Any:
    """Returns a callback's table without its name, which is the table's own; false for one that is switched off."""
    return False if config is None else {key: value for key, value in _plain(config).items() if key != "name"}
