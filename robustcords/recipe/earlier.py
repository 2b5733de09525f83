"""Keys that earlier versions had in other places: recipes and runs that have them are read as ever."""

from __future__ import annotations

from typing import Any


def moved(values: dict[str, Any]) -> dict[str, Any]:
    """Returns what a recipe file or ``--set`` says, with ``train.overfitting`` and ``train.dynamics`` as callbacks.

    Raises:
        ValueError: one of them stands in both places.
    """
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
    if isinstance(callbacks, dict):
        if twice := sorted(earlier.keys() & callbacks.keys()):
            raise ValueError(f"train.{twice[0]} is callbacks.{twice[0]} now; write one of the two")
        callbacks = {**earlier, **callbacks}
    return {**values, "train": train, "callbacks": callbacks}
