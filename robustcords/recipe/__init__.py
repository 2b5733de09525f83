"""Recipes: TOML in, a checked `Recipe` out."""

from robustcords.recipe.recipe import (
    EvaluationConfig,
    LoggingConfig,
    Recipe,
    TrainConfig,
    dump,
    find,
    load,
    parse,
    shipped,
)

__all__ = ["EvaluationConfig", "LoggingConfig", "Recipe", "TrainConfig", "dump", "find", "load", "parse", "shipped"]
