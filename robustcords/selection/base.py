"""The base class of strategies: options, inputs, and the subset they return."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader

from robustcords.attacks.base import Attack
from robustcords.config.schema import ComponentConfig, Share, Stateful
from robustcords.errors import UserError
from robustcords.losses.base import Loss
from robustcords.rng import Noise
from robustcords.selection.loaded import images_of
from robustcords.selection.observer import Observer
from robustcords.selection.proxy import ProxyConfig

_log = logging.getLogger(__name__)

Augment = Callable[[Tensor, Noise], Tensor]
"""Images (B, C, H, W) and noise (B,) to other images of the same shape."""

Granularity = Literal["per_class", "per_batch", "per_gradient", "full"]
"""What a strategy chooses from at a time.

``per_class``: the examples of one class, each class with its share of the budget. ``per_gradient``: the same, by the
gradient of that class's own output alone. ``per_batch``: whole batches, by their mean gradients. ``full``: all examples
at once.
"""


class StrategyConfig(ComponentConfig):
    """Options of every strategy.

    Attributes:
        fraction: share of the training split that an epoch trains on; 1 is full data. Li et al. 2023 use 0.3.
        select_every: number of epochs between selections. Li et al. 2023 use 20.
        granularity: what the strategy chooses among at a time: ``per_class``, the examples of one class;
            ``per_gradient``, the same, compared by the gradient of that class's output alone; ``per_batch``, whole
            batches; ``full``, all examples.
        warm_start: CORDS' kappa: this share of the epochs is replaced by the smaller number of full-data epochs that
            cost the same.
        select_first: select before the first epoch too, instead of starting with a random subset.
        proxy: another model to select with; left out, the model that is trained.
    """

    fraction: Share = 0.3
    select_every: Annotated[int, Field(ge=1)] = 20
    granularity: Granularity = "per_class"
    warm_start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    select_first: bool = False
    proxy: ProxyConfig | None = None

    def budget_of(self, size: int) -> int:
        """Returns the size of a subset of ``size`` training examples: the fraction, rounded, at least 1."""
        return max(1, round(self.fraction * size))


@dataclass(frozen=True)
class SelectionContext:
    """The inputs of one selection.

    Attributes:
        train_loader: (images, labels) of the training split, in order.
        val_loader: the same of the validation split; None if there is none.
        model: images in [0, 1] to logits; strategies leave its weights and modes alone.
        loss: the training loss.
        attack: the training attack; None for clean gradients.
        num_classes: number of logits.
        device: of the model.
        seed: of this selection; differs from epoch to epoch.
        logger: for messages to the user.
        on_batch: called with (done, total) batches of a pass over the data.
        measure: whether to report the gradient matching error, which costs one more pass over the factors.
        lr: the optimizer's peak learning rate; None if unknown.
        augment: augments images (B, C, H, W) as in training, without mixing, with noise keyed by example; None if
            unknown.
        progress: share of the training that is over, in [0, 1].
        observer: the strategy's observer of training; None if it has none.
    """

    train_loader: DataLoader[Any]
    val_loader: DataLoader[Any] | None
    model: nn.Module
    loss: Loss
    attack: Attack | None
    num_classes: int
    device: torch.device
    seed: int = 0
    logger: logging.Logger = _log
    on_batch: Callable[[int, int], None] | None = None
    measure: bool = False
    lr: float | None = None
    augment: Augment | None = None
    progress: float = 0.0
    observer: Observer | None = None

    @property
    def numbers(self) -> Tensor:
        """(N,) int64, the training loader's rows in the full training set's numbering, that of a run's ``selections/``.

        If the loader's data set is not `Images`, its rows.
        """
        return images_of(self.train_loader).numbers

    @property
    def peak_rate(self) -> float:
        """The optimizer's peak learning rate, for ``eta = "lr"``.

        Raises:
            UserError: it is unknown.
        """
        if self.lr is None:
            raise UserError('selector.eta = "lr" needs the optimizer\'s learning rate, lr; give it, or a number as eta')
        return self.lr


@dataclass
class SelectionReport:
    """The cost of one selection, and its gradient matching error.

    Attributes:
        seconds: by phase: ``"attack"``, ``"validation attack"``, ``"solve"``.
        matching_error: ``min over a of || a sum_S w_i g_i - sum_D g || / || sum_D g ||``, in [0, 1], with the
            selection's weights; None if it was not measured.
        random_matching_error: the same for a random subset of the same size, per class if classes are selected from
            separately.
    """

    seconds: dict[str, float]
    matching_error: float | None = None
    random_matching_error: float | None = None


class Strategy(Stateful, ABC):
    """Selects examples and their weights. A new object is built for every selection.

    A selection depends on its context only, unless the strategy implements `state_dict` and `load_state_dict`: the
    state after a selection is loaded before the next one. The selector and the run's checkpoints store it, so that a
    resumed run selects the same subsets as an uninterrupted one. Class attributes and globals are not stored. The state
    is read in all processes before the first selection, to check that it can be saved, and in the main process after
    each, which broadcasts it.

    Attributes:
        Config: the options; a subclass of `StrategyConfig`.
        requires: what it needs, such as `robustcords.config.requirements.VALIDATION_IMAGES`.
        uses_model: whether it uses the model; if not, a proxy is of no use.
        needs_linear_head: whether it uses gradients of a last linear layer, which the model must then have.
        observer: class that receives the losses of every training step, for a strategy that selects by them, or None.
        varies: whether the size of a selection may differ from the budget; at least 1.
        fixes_normaliser: whether its weights have to stay unbiased: a batch's weighted losses are divided by the number
            of its examples times the selection's mean weight, instead of the sum of its own weights, which would give
            every batch the same total weight.
        report: of the last selection, in the process that made it; None before, or without reports.
    """

    Config: ClassVar[type[StrategyConfig]] = StrategyConfig
    requires: ClassVar[frozenset[str]] = frozenset()
    uses_model: ClassVar[bool] = True
    needs_linear_head: ClassVar[bool] = False
    observer: ClassVar[type[Observer] | None] = None
    varies: ClassVar[bool] = False
    fixes_normaliser: ClassVar[bool] = False
    report: SelectionReport | None = None

    @classmethod
    def build_observer(cls, config: Any, size: int) -> Observer | None:
        """Returns a new `observer`, or None if the strategy has none, or none with these options.

        Args:
            config: an instance of `Config`.
            size: N, the number of training examples.
        """
        del config
        return cls.observer(size) if cls.observer else None

    @classmethod
    def refuse_too_large(cls, config: Any, candidates: int, entries: int) -> None:
        """Checks before training that groups of some size can be selected from; by default all can.

        Args:
            config: an instance of `Config`.
            candidates: of the largest group.
            entries: of a last-layer gradient, C * (1 + E).

        Raises:
            UserError: the group is too large for this strategy.
        """
        del config, candidates, entries

    @classmethod
    def check(cls, config: Any, context: SelectionContext) -> None:
        """Checks before training that selections will work; by default nothing is checked.

        Args:
            config: an instance of `Config`.
            context: of a selection.

        Raises:
            UserError: a selection would raise it.
        """

    @classmethod
    @abstractmethod
    def from_context(cls, config: Any, context: SelectionContext) -> Self:
        """Returns the strategy for one selection.

        Args:
            config: an instance of `Config`.
            context: the inputs of the selection.
        """

    @abstractmethod
    def select(self, budget: int, model_params: Any) -> tuple[list[int], Tensor]:
        """Returns the subset to train on, as CORDS' strategies do.

        Args:
            budget: k, from 1 to N; with N, all examples with weight 1.
            model_params: a state dictionary, which is loaded into the model first.

        Returns:
            k unique rows of the training loader's data set, and their weights (k,) float32, finite and >= 0; any number
            of them from 1 to N if the size `varies`.

        Raises:
            UserError: the budget is larger than the data.
        """

    @classmethod
    def stateful(cls) -> bool:
        """Returns whether selections have state."""
        return cls.state_dict is not Strategy.state_dict


class PlainStrategy(Strategy):
    """A strategy that is built from its options and context. Subclasses implement `select`.

    Args:
        config: an instance of `Config`.
        context: the inputs of the selection.
    """

    def __init__(self, config: Any, context: SelectionContext) -> None:
        self.config, self.context = config, context

    @classmethod
    def from_context(cls, config: Any, context: SelectionContext) -> Self:
        """Returns the strategy for one selection."""
        return cls(config, context)
