"""Selectors made of strategies that are written for CORDS."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn

import torch
from torch import nn

from robustcords.errors import Interrupted, RunError, UserError, one_line, raised_at
from robustcords.runtime import collectives
from robustcords.selection.cords._cords import GLISTERStrategy
from robustcords.selection.cords.instance_state import changed, put, taken
from robustcords.selection.cords.options import options_of
from robustcords.selection.cords.upstream import UpstreamStrategy
from robustcords.selection.gradient_based import augmentation
from robustcords.selection.gradients.adversarial_gradients import AdversarialGradients


@functools.cache
def selector(strategy: type) -> type[CordsStrategy]:
    """Returns the one selector of a class that CORDS' code could use: configurations of two would not be equal.

    Raises:
        UserError: it has a parameter that neither a selection nor a recipe has a value for.
    """
    hooked = issubclass(strategy, AdversarialGradients)
    config, parameters = options_of(strategy, hooked=hooked)
    body = {
        "__doc__": inspect.getdoc(strategy),
        "__module__": __name__,
        "Config": config,
        "strategy": strategy,
        "parameters": parameters,
        "needs_validation": getattr(strategy, "needs_validation", issubclass(strategy, GLISTERStrategy)),
        "needs_linear_head": "model" in parameters,
        "all_processes": hooked,
        "known_batches": bool(config.forms),
    }
    return type(strategy.__name__, (CordsStrategy,), body)


class CordsStrategy(UpstreamStrategy):
    """A strategy of CORDS that is told by its constructor's signature what it needs; `selector` makes subclasses.

    Behind the `AdversarialGradients` hook it gets the training loss and attack. What the class leaves in its attributes
    is there at the next selection, as in CORDS' code, where one object serves for the whole run (`instance_state`); or
    what its own ``state_dict`` says, where it has one. A warning names attributes that cannot be kept.

    Attributes:
        strategy: CORDS' class.
        parameters: the names of its constructor's parameters.
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

    def given(self, model: nn.Module) -> dict[str, Any]:
        """Returns values for constructors; behind the hook, those of training."""
        values, context = super().given(model), self.context
        if self.all_processes:
            values |= dict.fromkeys(("loss", "loss_func", "loss_type"), context.loss)
            values["attack"] = context.attack and self.config.attack(context.attack, torch.device(context.device))
            values["augment"] = augmentation(self.config, context)
        return values

    def upstream(self, model: nn.Module, budget: int) -> Any:
        """Returns CORDS' strategy.

        Raises:
            UserError: its constructor fails.
        """
        del budget
        self._arguments = self.arguments(self.parameters, model)
        with self._failing_in("its constructor"):
            return self.strategy(**self._arguments)

    def own(self) -> NoReturn:
        """Says why CORDS' code cannot serve: nothing of this package can take its place.

        Raises:
            UserError: always.
        """
        raise UserError(f"selector {self.config.name!r}: {self.strategy.__name__}: {self.obstacle()}")

    def _ask(self, strategy: Any, budget: int, model_params: Any) -> tuple[list[int], list[float]]:
        """Returns what the strategy selects.

        Raises:
            UserError: it fails, or returns no subset; the line says where.
        """
        new = self._begin(strategy)
        with self._failing_in("select"):
            picks = super()._ask(strategy, budget, model_params)
        self._end(strategy, new)
        if not picks[0]:
            raise UserError(f"selector {self.config.name!r}: {self.strategy.__name__} selected nothing")
        if (distinct := len(set(picks[0]))) < budget:
            text = "%s: %d of the %d examples wanted; the others are random, with weight 1"
            self.context.logger.warning(text, self.config.name, distinct, budget)
        return picks

    def _begin(self, strategy: Any) -> dict[str, Any]:
        """Gives CORDS' object what the last one left; returns its attributes before that."""
        if hasattr(strategy, "load_state_dict"):
            if "own" in self.state:
                strategy.load_state_dict(self.state["own"])
            return {}
        new, _ = taken(strategy, self._arguments.values())
        put(strategy, self.state.get("attributes", {}))
        return new

    def _end(self, strategy: Any, new: dict[str, Any]) -> None:
        """Takes what CORDS' object leaves."""
        if hasattr(strategy, "load_state_dict"):
            self.state = {"own": strategy.state_dict()}
            return
        attributes, lost = taken(strategy, self._arguments.values())
        told = self.state.get("lost", [])
        if collectives.is_main() and (names := [name for name in lost if name not in told]):
            text = "%s: every selection begins with new %s: these attributes cannot be kept; write state_dict for them"
            self.context.logger.warning(text, self.config.name, ", ".join(names))
        self.state = {"attributes": changed(new, attributes), "lost": lost}

    @contextmanager
    def _failing_in(self, what: str) -> Iterator[None]:
        """Makes one line of what the strategy's own code raises; CORDS' division by 0 is left to `_run`."""
        try:
            yield
        except (UserError, RunError, Interrupted):
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, ZeroDivisionError) and "cords" in Path(raised_at(error).filename).parts:
                raise
            name = f"selector {self.config.name!r}: {self.strategy.__name__}"
            raise UserError(f"{name} failed in {what}: {one_line(error)}") from error
