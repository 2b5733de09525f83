"""Keys of earlier versions that have moved since: older recipes and runs still load."""

from __future__ import annotations

from typing import Any


def moved(values: dict[str, Any]) -> dict[str, Any]:
    """Returns what a recipe file or ``--set`` says, with every key where this version has it.

    ``train.overfitting`` and ``train.dynamics`` are callbacks, ``data.crop`` and ``data.flip`` options of the
    augmentation.

    Raises:
        ValueError: one of them stands in both places.
    """
    return augmentation_moved(_callbacks(values))


def augmentation_moved(values: dict[str, Any]) -> dict[str, Any]:
    """Returns what a recipe says, with ``data.crop`` and ``data.flip`` as options of the augmentation.

    Raises:
        ValueError: one of them stands in both places.
    """
    data, table = values.get("data"), values.get("augmentation", {})
    if not isinstance(data, dict) or not isinstance(table, dict) or not {"crop", "flip"} & data.keys():
        return values
    earlier = {key: data[key] for key in ("crop", "flip") if key in data}
    _refuse_both("data", earlier, "augmentation", table)
    kept = {key: value for key, value in data.items() if key not in earlier}
    return {**values, "data": kept, "augmentation": {**earlier, **table}}


def _callbacks(values: dict[str, Any]) -> dict[str, Any]:
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
        _refuse_both("train", earlier, "callbacks", callbacks)
        callbacks = {**earlier, **callbacks}
    return {**values, "train": train, "callbacks": callbacks}


def _refuse_both(before: str, earlier: dict[str, Any], now: str, table: dict[str, Any]) -> None:
    """Checks that no key stands in its earlier table and in the one that it has moved to.

    Raises:
        ValueError: one does.
    """
    if twice := sorted(earlier.keys() & table.keys()):
        raise ValueError(f"{before}.{twice[0]} is {now}.{twice[0]} now; write one of the two")
