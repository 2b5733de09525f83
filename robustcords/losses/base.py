"""The base class of losses: their views, their value for each example, and the objective of their attack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.config.requirements import HARD_LABELS
from robustcords.config.schema import Component, ComponentConfig
from robustcords.engine import contracts
from robustcords.engine.precision import full_precision
from robustcords.errors import UserError, nearest
from robustcords.losses.context import LossContext, Moment
from robustcords.losses.objective import Objective, cross_entropy_of

View = Literal["clean", "adversarial"]

_BEFORE = {
    "__call__": "from_logits(logits, y), with logits by the name of their view",
    "passes": "views",
    "anchored": "relative_to_clean",
    "start": "the start of the Objective that objective(y, clean) returns",
}
"""What 0.1 asked a loss for, and would now be passed over in silence: a subclass would train as its base does."""


class LossConfig(ComponentConfig):
    """Options of every loss.

    Attributes:
        label_smoothing: share of a label's probability that is spread over all classes. It acts on the cross-entropy of
            the update, never on the attack's objective.
    """

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Loss(Component, ABC):
    """A training loss: logits of the views it needs and labels in, one number per example out.

    Attributes:
        views: the images that an update makes forward passes of: ``"clean"``, ``"adversarial"``, or both.
        relative_to_clean: whether its `Objective` is. Declared here too, for what depends on it before there is a
            batch: a recipe is refused whose attack would start at the image, where such an objective has no gradient,
            and an effort that asks for clean logits gets them in float32. `robustcords.losses.check.check_loss` refuses
            a loss whose objective disagrees.
        batchwise: whether the value has a term of the whole batch, such as a norm of all its logits, of which every
            example's value has an equal share, the term divided by B. Accumulation and several processes split a batch
            into parts, each with its own term, so such a loss depends on them; a selection differentiates it batch by
            batch.
        requires: hard labels by default. A loss that takes soft labels (B, classes) for ``y`` too, as a cross-entropy
            does, declares ``requires = frozenset()``, and works with CutMix and mixup.

    Raises:
        UserError: for an invalid value of these attributes, or a member of the interface of 0.1.

    Example:
        >>> logits = {"clean": torch.zeros(1, 2), "adversarial": torch.zeros(1, 2)}
        >>> TRADES().from_logits(logits, torch.tensor([0]))
        tensor([0.6931])
    """

    Config: ClassVar[type[LossConfig]] = LossConfig
    requires: ClassVar[frozenset[str]] = frozenset({HARD_LABELS})
    config: LossConfig
    views: ClassVar[tuple[str, ...]] = ("clean", "adversarial")
    relative_to_clean: ClassVar[bool] = False
    batchwise: ClassVar[bool] = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_declared(self)

    def at(self, moment: Moment) -> Loss:
        """Returns the loss at a moment of training; by default itself.

        Attacks, updates and selections call this first. A loss whose weights change over training returns a copy with
        those of the moment.
        """
        del moment
        return self

    @abstractmethod
    def from_logits(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """Returns the loss of every example (B,), in float32, differentiable in every view's logits.

        Selection differentiates this, and so does `forward` unless it is overridden.

        Args:
            logits: (B, classes) of each of `views`, by its name.
            y: (B,) int64 labels.
        """

    def forward(self, model: nn.Module, views: Mapping[str, Tensor], y: Tensor, context: LossContext) -> Tensor:
        """Returns the training loss of every example (B,), which the update differentiates.

        By default `from_logits` of the model's logits of each view. A loss that needs more of the model, such as input
        gradients or features, overrides this as well; selection uses `from_logits`.

        Args:
            model: images (B, C, H, W) in [0, 1] to logits, in train mode.
            views: the images of each of `views`, by its name.
            y: (B,) int64 labels.
            context: the threat model, the moment, and noise keyed by example.
        """
        del context
        logits = {name: full_precision(model(views[name])) for name in self.views}
        with torch.autocast(y.device.type, enabled=False):
            return self.from_logits(logits, y)

    def objective(self, y: Tensor, clean: Callable[[], Tensor]) -> Objective:
        """Returns what the attack maximises: by default cross-entropy, from a uniform start.

        Args:
            y: (B,) int64 labels.
            clean: returns (B, classes) eval-mode logits of the clean images, without a graph, computed at the first
                call; see `robustcords.attacks.base.CleanLogits`.
        """
        del clean
        return cross_entropy_of(y)

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Returns (B,) cross-entropy in float32, with the loss's label smoothing."""
        smoothing = self.config.label_smoothing
        return F.cross_entropy(full_precision(logits), y, reduction="none", label_smoothing=smoothing)


def check_declared(loss: Loss) -> None:
    """Checks a loss's `views`, `relative_to_clean` and `batchwise`.

    Raises:
        UserError: one has an invalid value, or the class has a member of the interface of 0.1.
    """
    source = f"loss {contracts.title(loss)}"
    kinds = [kind for kind in type(loss).__mro__ if issubclass(kind, Loss)]
    for name, now in _BEFORE.items():
        if any(name in vars(kind) for kind in kinds):
            raise UserError(f"{source}: {name} was renamed in 0.2; it is {now}")
    views, allowed = loss.views, get_args(View)
    if not isinstance(views, tuple | list) or not views:
        raise UserError(f'{source}: views = {views!r}, expected ("clean",), ("adversarial",) or both')
    for name in views:
        if name not in allowed:
            raise UserError(f"{source}: views = {views!r}: no view is called {name!r}{nearest(str(name), allowed)}")
    if len(set(views)) < len(views):
        raise UserError(f"{source}: views = {views!r}: each at most once")
    for name in ("relative_to_clean", "batchwise"):
        if not isinstance(value := getattr(loss, name), bool):
            raise UserError(f"{source}: {name} = {value!r}, expected True or False")
