"""The base class of methods that wrap another method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Annotated, Any, ClassVar

import torch
from pydantic import SerializeAsAny
from torch import Tensor, nn

from robustcords.config import registry
from robustcords.config.schema import Names
from robustcords.data.images import Images
from robustcords.engine import contracts
from robustcords.engine.modes import Model
from robustcords.losses.context import Moment
from robustcords.methods.base import Batch, Method, MethodConfig, Step, StepReport


class WrapperConfig(MethodConfig):
    """Options of every wrapper.

    Attributes:
        inner: the wrapped method, a table like ``[method]``. Without a ``name`` it is ``adversarial``.
    """

    inner: Annotated[SerializeAsAny[MethodConfig], Names("method")]


class Wrapper(Method):
    """A method that wraps another one. Subclasses implement `around`, or `step` itself.

    It provides and requires what the inner method does.

    Args:
        inner: the wrapped method, which has the loss, the attack and the effort.
        options: the fields of the wrapper's ``Config``, without ``inner``.
    """

    Config: ClassVar[type[MethodConfig]] = WrapperConfig
    requires: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, inner: Method, **options: Any) -> None:
        super().__init__(inner.loss, inner.attack, inner.effort, inner=inner.config, **options)
        self.inner = inner

    @classmethod
    def resolved(cls, config: Any, threat: Any) -> Any:
        """Returns the options with the inner method's filled in."""
        inner = registry.find("method", config.inner.name).resolved(config.inner, threat)
        return config.model_copy(update={"inner": inner})

    def step(self, step: Step, batch: Batch) -> StepReport:
        """Lets the inner method train on the batch, with the step that `around` returns."""
        inner_step: Step = contracts.instance(f"method {contracts.title(self)}: around", self.around(step), Step)
        return self.inner.step(inner_step, batch)

    def around(self, step: Step) -> Step:
        """Returns the step that the inner method gets in place of the loop's, usually a subclass of `StepAround`."""
        return step

    def prepare(self, train: Images, device: torch.device) -> None:
        """Called before training with the training set; passes it to the inner method."""
        self.inner.prepare(train, device)

    def parts(self, name: str = "method") -> dict[str, Any]:
        """Returns the wrapper, and the inner method's parts with that method as ``"method.inner"``."""
        return {name: self, **self.inner.parts(f"{name}.inner")}


class StepAround(Step):
    """A step that delegates to another one. Subclasses override parts of it.

    Args:
        step: the wrapped step.
    """

    def __init__(self, step: Step) -> None:
        self.step = step

    @property
    def moment(self) -> Moment:  # type: ignore[override]
        """Where training is."""
        return self.step.moment

    @property
    def model(self) -> nn.Module:  # type: ignore[override]
        """In train mode, unwrapped."""
        return self.step.model

    @property
    def inference(self) -> Model:  # type: ignore[override]
        """The same model as attacks run it."""
        return self.step.inference

    def attacking(self) -> AbstractContextManager[None]:
        """Context for attacks."""
        return self.step.attacking()

    def without_statistics(self) -> AbstractContextManager[None]:
        """Context for passes that affect gradients only."""
        return self.step.without_statistics()

    def micro_batches(self, batch: Batch) -> Iterator[slice]:
        """Yields the rows of each micro-batch in turn."""
        yield from self.step.micro_batches(batch)

    def losses(self, views: Mapping[str, Tensor], batch: Batch, rows: slice) -> Tensor:
        """Returns the loss (b,) of some rows of a batch."""
        return self.step.losses(views, batch, rows)

    def backward(self, losses: Tensor, batch: Batch, rows: slice) -> None:
        """Adds the gradient of the weighted mean to the parameters' ``.grad``."""
        self.step.backward(losses, batch, rows)

    def optimizer_step(self) -> None:
        """Clips the gradients, steps the optimizer and zeroes the gradients."""
        self.step.optimizer_step()

    def phase(self, name: str) -> None:
        """Counts the time from here on as ``"attack"`` or ``"update"``."""
        self.step.phase(name)
