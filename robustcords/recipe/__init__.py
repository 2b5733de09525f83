"""Recipes: TOML in, a validated `Recipe` out."""

from robustcords.recipe.recipe import (
    LoggingConfig,
    Recipe,
    TrainConfig,
    dump,
    load,
    parse,
    shipped,
)
from robustcords.recipe.tables import find

__all__ = ["LoggingConfig", "Recipe", "TrainConfig", "dump", "find", "load", "parse", "shipped"]
