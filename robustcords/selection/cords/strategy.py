"""Selectors made of strategies that are written for CORDS."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

import torch
from torch import nn

from robustcords.errors import Interrupted, RunError, UserError, one_line, raised_at
from robustcords.runtime import collectives
from robustcords.selection.base import SelectionContext
from robustcords.selection.cords._cords import GLISTERStrategy
from robustcords.selection.cords.instance_state import changed, put, taken
from robustcords.selection.cords.options import CONTEXT, options_of, parameters_of
from robustcords.selection.cords.upstream import UpstreamStrategy
from robustcords.selection.gradients.adversarial_gradients import AdversarialGradients

_TRAIN_CURE = '; CORDS selects in train mode: set selector.model_mode = "eval", or another train.batch_size'


@functools.cache
def selector(strategy: type) -> type[CordsStrategy]:
    """Returns the one selector of a class: configurations of two would not be equal.

    Args:
        strategy: a class that CORDS' code could use.

    Raises:
        UserError: it has a parameter that neither a selection nor a recipe has a value for.
    """
    parameters = parameters_of(strategy)
    hooked = issubclass(strategy, AdversarialGradients)
    config = options_of(strategy, parameters, adversarial=hooked)
    body = {
        "__doc__": inspect.getdoc(strategy),
        "__module__": __name__,
        "Config": config,
        "strategy": strategy,
        "parameters": tuple(name for name in parameters if name in CONTEXT or name in config.model_fields),
        "needs_validation": getattr(strategy, "needs_validation", issubclass(strategy, GLISTERStrategy)),
        "needs_linear_head": "model" in parameters,
        "all_processes": hooked,
    }
    return type(strategy.__name__, (CordsStrategy,), body)


class CordsStrategy(UpstreamStrategy):
    """A strategy of CORDS that is told by its constructor's signature what it needs; `selector` makes subclasses.

    Parameters of the names in `CONTEXT` are what a selection is made with, the others are options. The loss is
    cross-entropy, unreduced; that of a class with the `AdversarialGradients` hook is the training loss, and its attack
    the training attack. Without a validation split, ``valloader`` is the training loader, as CORDS counts its examples
    in any case.

    What the class leaves in its attributes is there at the next selection, as in CORDS' code, where one object serves
    for the whole run (`instance_state`); or what its own ``state_dict`` says, where it has one. A warning names
    attributes that cannot be kept.

    Attributes:
        strategy: CORDS' class.
        parameters: the names of its constructor's parameters that get a value.
        state: what an earlier selection left, and then what this one does.
    """

    strategy: ClassVar[type]
    parameters: ClassVar[tuple[str, ...]]
    state: Mapping[str, Any] = MappingProxyType({})

    def state_dict(self) -> dict[str, Any]:
        """Returns what CORDS' object has left."""
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps it for CORDS' object, which is built when it selects."""
        self.state = state

    @classmethod
    def check(cls, config: Any, context: SelectionContext) -> None:
        """Does what every strategy of CORDS does, and looks for a batch of one image.

        Raises:
            UserError: its constructor fails, its last layer is another, or BatchNorm would meet such a batch.
        """
        super().check(config, context)
        if cls.all_processes or "selection_type" not in cls.parameters:
            return  # its gradients are taken in eval mode, or it is not known of which batches
        by_class = str(config.used_selection_type).startswith("PerClass")
        if cls(config, context).meets_one_image(by_class=by_class):
            raise UserError(
                f"selector {config.name!r}: a batch has one image, and BatchNorm needs more than 1 value per channel"
                f"{_TRAIN_CURE}"
            )

    def upstream(self, model: nn.Module, budget: int) -> Any:
        """Returns CORDS' strategy.

        Raises:
            UserError: its constructor fails, or it selects by validation images and there are none.
        """
        del budget
        if self.context.val_loader is None and getattr(self.config, "valid", False):
            raise UserError(
                f"selector {self.config.name!r} selects with validation images: set data.validation_fraction > 0"
            )
        given = self._given(model)
        arguments = {name: given.get(name, self._option(name)) for name in self.parameters}
        self._arguments = [*arguments.values()]
        try:
            strategy = self.strategy(**arguments)
        except (UserError, RunError):
            raise
        except (Exception, SystemExit) as error:
            self._fail("its constructor", error)
        _lower_rounds(strategy)
        return strategy

    def own(self) -> NoReturn:
        """Says why CORDS' code cannot serve: nothing of this package can take its place.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"selector {self.config.name!r}: CORDS' gradients are those of a bias and a weight, and the model's last "
            "layer does not train both: put AdversarialGradients in front of the strategy, or train both"
        )

    def _option(self, name: str) -> Any:
        return self.config.used_selection_type if name == "selection_type" else getattr(self.config, name, None)

    def _given(self, model: nn.Module) -> dict[str, Any]:
        """Returns what a selection is made with, by the names that CORDS' constructors have for it."""
        context: SelectionContext = self.context
        loss: Any = context.loss if self.all_processes else self.loss
        attack = context.attack
        if attack and self.all_processes:
            attack = self.config.attack(attack, context.device)
        values = {
            "trainloader": context.train_loader,
            "valloader": context.val_loader or context.train_loader,
            "model": model,
            "loss": loss,
            "device": torch.device(context.device),  # with the string "cpu" GRAD-MATCH would ignore lam and eps
            "num_classes": context.num_classes,
            "logger": context.logger,
            "attack": attack,
            "seed": context.seed,
            "on_batch": context.on_batch,
        }
        return {name: values[what] for name, what in CONTEXT.items()}

    def _ask(self, strategy: Any, budget: int, model_params: Any) -> tuple[list[int], list[float]]:
        """Returns what the strategy selects.

        Raises:
            UserError: it fails, or returns no subset; the line says where.
        """
        given = (budget, model_params) if _takes(strategy.select, budget, model_params) else (budget,)
        new = self._begin(strategy)
        try:
            indices, weights = strategy.select(*given)
            picks = [int(index) for index in indices], torch.as_tensor(weights).double().view(-1).tolist()
        except (UserError, RunError, Interrupted):
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, ZeroDivisionError) and "cords" in Path(raised_at(error).filename).parts:
                raise
            self._fail("select", error)
        self._end(strategy, new)
        if not picks[0]:
            raise UserError(f"selector {self.config.name!r}: {self.strategy.__name__} selected nothing")
        if (distinct := len(set(picks[0]))) < budget:
            text = "%s: %d of the %d examples wanted; the others are random, with weight 1"
            self.context.logger.warning(text, self.config.name, distinct, budget)
        return picks

    def _begin(self, strategy: Any) -> dict[str, Any]:
        """Gives CORDS' object what the last one left; returns its attributes before that."""
        if _has_state(strategy):
            if "own" in self.state:
                strategy.load_state_dict(self.state["own"])
            return {}
        new, _ = taken(strategy, self._arguments)
        put(strategy, self.state.get("attributes", {}))
        return new

    def _end(self, strategy: Any, new: dict[str, Any]) -> None:
        """Takes what CORDS' object leaves."""
        if _has_state(strategy):
            self.state = {"own": strategy.state_dict()}
            return
        attributes, lost = taken(strategy, self._arguments)
        told = self.state.get("lost", [])
        if collectives.is_main() and (names := [name for name in lost if name not in told]):
            text = "%s: every selection begins with new %s: these attributes cannot be kept; write state_dict for them"
            self.context.logger.warning(text, self.config.name, ", ".join(names))
        self.state = {"attributes": changed(new, attributes), "lost": lost}

    def _fail(self, what: str, error: BaseException) -> NoReturn:
        alone = self.trains and "more than 1 value per channel when training" in str(error)
        raise UserError(
            f"selector {self.config.name!r}: {self.strategy.__name__} failed in {what}: {one_line(error)}"
            f"{_TRAIN_CURE if alone else ''}"
        ) from error


def _has_state(strategy: Any) -> bool:
    """Returns whether a strategy says itself what it keeps."""
    return hasattr(strategy, "state_dict") and hasattr(strategy, "load_state_dict")


def _takes(function: Any, *arguments: Any) -> bool:
    """Returns whether a function can be called so; CORDS' RandomStrategy wants no model parameters."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    return True


def _lower_rounds(strategy: Any) -> None:
    """Lets GLISTER's RGreedy finish a group whose budget is below r: it takes ``budget // r`` at a time, which is 0."""
    if getattr(type(strategy), "greedy_algo", None) is not GLISTERStrategy.greedy_algo:
        return
    rounds, greedy = strategy.r, strategy.greedy_algo

    def greedy_algo(budget: int) -> Any:
        strategy.r = max(1, min(rounds, budget))
        try:
            return greedy(budget)
        finally:
            strategy.r = rounds

    strategy.greedy_algo = greedy_algo
