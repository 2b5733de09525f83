"""Keys that earlier versions had in other places: recipes and runs that have them are read as ever."""

from __future__ import annotations

from typing import Any


def moved(values: dict[str, Any]) -> dict[str, Any]:
    """Returns what a recipe file or ``--set`` says, with ``train.overfitting`` and ``train.dynamics`` as callbacks."""
    train = values.get("train")
    if not isinstance(train, dict) or not {"overfitting", "dynamics"} & train.keys():
        return values
    train, callbacks = dict(train), values.get("callbacks", {})
    earlier = {}
    if "overfitting" in train:
        action = train.pop("overfitting")
        earlier["overfitting"] = {"action": action} if action else action
    if "dynamics" in train:
        earlier["dynamics"] = train.pop("dynamics")
    return {
        **values,
        "train": train,
        "callbacks": {**earlier, **callbacks} if isinstance(callbacks, dict) else callbacks,
    }
