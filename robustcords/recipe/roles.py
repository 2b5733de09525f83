"""What a key of a recipe means to a run that is resumed with another value, and to the method that the run is of."""

from __future__ import annotations

from robustcords.config.schema import Role, Table, roles
from robustcords.data.decoded_splits import ImageConfig
from robustcords.recipe.recipe import Recipe
from robustcords.training.config import LoggingConfig, TrainConfig

_TABLES: dict[str, type[Table]] = {"data": ImageConfig, "logging": LoggingConfig, "train": TrainConfig}
"""The tables whose keys have roles of their own; every key of another one has the role of its table."""

ROLES = roles(Recipe) | {
    f"{table}.{key}": role for table, config in _TABLES.items() for key, role in roles(config).items()
}
"""A table, or a dotted key, to its role."""

DEFAULTS = {
    key: field.default
    for table, config in _TABLES.items()
    for name, field in config.model_fields.items()
    if ROLES[key := f"{table}.{name}"].of == "method" and isinstance(field.default, int | float | str)
}
"""What a part of the method is where a recipe from before that key leaves it out, by its dotted key."""

CHANGEABLE = frozenset(key for key, role in ROLES.items() if role.changeable)
"""What a recipe may say otherwise than the run that is resumed with it, besides more epochs.

Where the data lies, how steps are computed and when they are kept: what another machine may need, and no other run.
"""


def role_of(key: str) -> Role:
    """Returns the role of a dotted key, at any depth; of one that no table declares, a part of the method for good."""
    table, _, below = key.partition(".")
    whole = ROLES.get(table, Role())
    return whole if whole.of != "method" else ROLES.get(f"{table}.{below.partition('.')[0]}", whole)
