"""The base class of callbacks."""

from __future__ import annotations

import json
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

from robustcords.attacks.base import Attack
from robustcords.config.schema import Component, ComponentConfig, Stateful
from robustcords.data.images import Images
from robustcords.engine import contracts
from robustcords.engine.foreign_calls import left_alone
from robustcords.engine.inference import Autocast
from robustcords.engine.modes import modes_kept, seeded
from robustcords.errors import UserError, kind_of
from robustcords.losses.base import Loss
from robustcords.rng import derive, generator
from robustcords.runtime.progress import Display
from robustcords.storage.records import finite


@dataclass(frozen=True)
class CallbackContext:
    """The parts of a run that a callback may be built from.

    Attributes:
        train: the training split, not augmented.
        attack: the training attack, as hard as any example is attacked.
        monitor: a strong attack at the training radius, whatever the training attack is.
        loss: what is minimised.
        seed: of the run.
    """

    train: Images
    attack: Attack
    monitor: Attack
    loss: Loss
    seed: int

    def drawn(self, count: int, purpose: str) -> Images:
        """Returns so many training images, drawn for the run, in their order; all for 0, or where there are fewer."""
        order = torch.randperm(len(self.train), generator=generator(self.seed, purpose))
        return self.train.subset(order[: count or None].sort().values)


@dataclass(frozen=True)
class EpochEnd:
    """An epoch that has ended.

    Attributes:
        epoch: its number, from 0.
        last: whether it is the run's last one.
        model: in training, not wrapped.
        result: the model whose weights are the result: the averaged one where there is averaging, else ``model``.
        seed: of the run.
        autocast: makes the precision that training runs in; asks first whether to stop.
        save_weights: writes the result's weights under a name, such as ``"best"``.
        display: where lines for a person go.
        validated: to be called with the accuracies of a validation, which the effort adapts to.
    """

    epoch: int
    last: bool
    model: nn.Module
    result: nn.Module
    seed: int
    autocast: Autocast
    save_weights: Callable[[str], None]
    display: Display
    validated: Callable[[Mapping[str, float]], None] = lambda result: None


class Callback(Component, Stateful, ABC):
    """Hooks that are called during training, identically on every process.

    Subclasses override the hooks they need. ``[callbacks]`` of a recipe names them, each with its options. The time of
    `after_epoch` counts as validation.

    Attributes:
        name: the key of its entry in ``metrics.jsonl`` and of its state in a checkpoint; by default the class's name in
            lower case.
        measurable: whether a call has no effect that `load_state_dict` does not undo. Then a run with a time budget
            measures the callback before training, on some of its ``images`` if it has that attribute; any other
            callback is first called in training, and assumed to take no time until then.

    Example:
        >>> class WeightNorm(Callback):
        ...     def after_epoch(self, end):
        ...         return {"norm": sum(float(p.norm() ** 2) for p in end.model.parameters()) ** 0.5}
    """

    Config: ClassVar[type[ComponentConfig]] = ComponentConfig
    name: ClassVar[str] = ""
    measurable: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Names a class that has no name of its own."""
        super().__init_subclass__(**options)
        if "name" not in vars(cls):
            cls.name = cls.__name__.lower()

    @classmethod
    def from_context(cls, config: Any, context: CallbackContext) -> Self | None:
        """Returns the callback with a recipe's options, or None where it has nothing to do in such a run.

        Args:
            config: the callback's ``Config``.
            context: parts of the run, for a callback whose constructor needs some.
        """
        del context
        return cls(name=config.name, **config.options())

    def after_step(self, loss: float, model: nn.Module) -> None:
        """Is called after each optimiser step.

        Args:
            loss: the weighted mean over the global batch.
            model: in training, not wrapped; must be left as it is.
        """

    def due(self, epoch: int, *, last: bool) -> bool:
        """Returns whether `after_epoch` is called after an epoch, from 0; after every one where nothing else is said.

        Args:
            epoch: its number.
            last: whether it is the run's last one.
        """
        del epoch, last
        return True

    def after_epoch(self, end: EpochEnd) -> dict[str, Any] | None:
        """Returns what the epoch's line of metrics is to hold under `name`, as JSON values, or None.

        Args:
            end: the models in it are left as they are.

        Raises:
            RunError: the run must not continue.
        """
        del end
        return None


def after_step(callbacks: Sequence[Callback], loss: float, model: nn.Module, *, thorough: bool) -> None:
    """Tells callbacks of a step; whatever mode one leaves the model in, training continues in its own.

    Args:
        callbacks: called in this order.
        loss: the weighted mean over the global batch.
        model: in training.
        thorough: look too whether it was left as it was, for which its weights are copied.

    Raises:
        UserError: one changed the model.
    """
    for callback in callbacks:
        if type(callback).after_step is not Callback.after_step:
            source = f"callback {contracts.title(callback)}"
            with left_alone(model, source) if thorough else modes_kept(model):
                callback.after_step(loss, model)


def after_epoch(callbacks: Sequence[Callback], end: EpochEnd) -> dict[str, Any]:
    """Calls callbacks after an epoch, and returns their entries for its line of metrics, by name.

    Args:
        callbacks: called in this order.
        end: passed to each.

    Raises:
        UserError: one changed a model, or noted what JSON cannot hold.
    """
    noted = {}
    for callback in callbacks:
        if not callback.due(end.epoch, last=end.last):
            continue
        source = f"callback {contracts.title(callback)}"
        device = next((parameter.device for parameter in end.model.parameters()), None)
        drawn = seeded(derive(end.seed, f"callback {callback.name}", end.epoch), device)
        with ExitStack() as lent:
            for model in {id(model): model for model in (end.model, end.result)}.values():
                lent.enter_context(left_alone(model, source))
            lent.enter_context(drawn)
            entry = callback.after_epoch(end)
        if entry is not None:
            noted[callback.name] = _json(source, entry)
    return noted


def _json(source: str, entry: Any) -> dict[str, Any]:
    """Returns an entry for the metrics, with null for NaN and infinity, which JSON does not have.

    Raises:
        UserError: it is not a dictionary, or holds what JSON cannot.
    """
    if not isinstance(entry, dict):
        raise UserError(f"{source} noted {kind_of(entry)}, expected a dictionary or None")
    values: dict[str, Any] = finite(entry)
    try:
        json.dumps(values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source} noted what JSON cannot hold: {error}") from error
    return values
