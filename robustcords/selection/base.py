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
from robustcords.selection.gradients.loaded import images_of
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
    """Options that every strategy has.

    Attributes:
        fraction: share of the training set that an epoch trains on, in (0, 1]; 30 % in Li et al. 2023.
        select_every: epochs from one selection to the next, >= 1; 20 in Li et al. 2023.
        granularity: what is chosen from at a time: the examples of a class, a class by its own output's gradient, whole
            batches, or all examples.
        warm_start: CORDS' kappa, in [0, 1): that share of the epochs is replaced by the fewer full-data epochs that
            cost the same.
        select_first: select at the first epoch too, where CORDS starts from a random subset.
        proxy: another model to select by, in place of the one that is trained; left out, the latter.
    """

    fraction: Share = 0.3
    select_every: Annotated[int, Field(ge=1)] = 20
    granularity: Granularity = "per_class"
    warm_start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    select_first: bool = False
    proxy: ProxyConfig | None = None

    def budget_of(self, size: int) -> int:
        """Returns how many examples a subset of a training split of ``size`` has: the fraction, rounded, at least 1."""
        return max(1, round(self.fraction * size))


@dataclass(frozen=True)
class SelectionContext:
    """What one selection is made with.

    Attributes:
        train_loader: (images, labels) of the training split, in order.
        val_loader: the same of the validation split; None where there is none.
        model: images in [0, 1] to logits; strategies leave its weights and modes alone.
        loss: the training loss.
        attack: the training attack; None for clean gradients.
        num_classes: number of logits.
        device: where the model is.
        seed: of this selection; another for every epoch.
        logger: for what a person may want to know.
        on_batch: called with (done, total) batches of a pass over the data.
        measure: whether the report is to say how well gradients match, which costs one more pass over their factors.
        lr: the optimizer's peak learning rate; None where nobody has said.
        augment: augments images (B, C, H, W) as training does, by noise that is keyed by example, but mixes none;
            None where nobody has said how.
        progress: share of the training that is over, in [0, 1].
        observer: of the strategy's own class, with what it has received of the steps so far; None where it names none.
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

        Of a loader whose data set is no `Images` they are its rows.
        """
        return images_of(self.train_loader).numbers

    @property
    def peak_rate(self) -> float:
        """The optimizer's peak learning rate, which ``eta = "lr"`` means.

        Raises:
            UserError: nobody has said it.
        """
        if self.lr is None:
            raise UserError('selector.eta = "lr" needs the optimizer\'s learning rate, lr; give it, or a number as eta')
        return self.lr


@dataclass
class SelectionReport:
    """What one selection cost, and how well it matches the gradients of all the data.

    Attributes:
        seconds: by phase, of those that there were: ``"attack"``, ``"validation attack"``, ``"solve"``.
        matching_error: ``min over a of || a sum_S w_i g_i - sum_D g || / || sum_D g ||``, in [0, 1], with the
            selection's weights; None where it was not measured.
        random_matching_error: the same of a random subset of as many examples, of each class where classes are chosen
            from one by one.
    """

    seconds: dict[str, float]
    matching_error: float | None = None
    random_matching_error: float | None = None


class Strategy(Stateful, ABC):
    """Chooses examples and their weights. Built anew for every selection.

    A selection depends on its context and on nothing that an earlier one has left, unless the strategy writes
    `state_dict` and `load_state_dict`: what the first returns after a selection, the second is given before the next
    one. The selector and the run's checkpoints keep it, so that a resumed run selects what an uninterrupted one does.
    Class attributes and globals are kept by nobody. The state is asked for in all processes before the first selection,
    to see whether it can be kept, and in the main one after each, whose answer all processes get.

    Attributes:
        Config: the options; a subclass of `StrategyConfig`.
        requires: what it cannot do without, such as `robustcords.config.requirements.VALIDATION_IMAGES`.
        uses_model: whether it uses the model; where it does not, a proxy would be of no use.
        needs_linear_head: whether it compares gradients of a last linear layer, which the model must then have.
        observer: the class that receives the losses of every training step, for a strategy that chooses by these; None
            for one that does not.
        varies: whether a selection may have another size than the budget, at least 1.
        fixes_normaliser: whether its weights have to stay unbiased: a batch's weighted losses are divided by the number
            of its examples times the selection's mean weight, where else by the sum of its own weights, which would
            make every batch count the same, whatever it drew.
        report: of the last selection, in the process that made it; None before, and where a strategy writes none.
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
    def refuse_too_large(cls, config: Any, candidates: int, entries: int) -> None:
        """Checks, before there is anything to lose, that groups of some size can be chosen from; here all can.

        Args:
            config: an instance of `Config`.
            candidates: of the largest group.
            entries: of a gradient of the last layer, C * (1 + E).

        Raises:
            UserError: the group is too large for this strategy.
        """
        del config, candidates, entries

    @classmethod
    def check(cls, config: Any, context: SelectionContext) -> None:
        """Finds out, before there is anything to lose, whether selections can be made; here nothing is looked at.

        Args:
            config: an instance of `Config`.
            context: what a selection would be made with.

        Raises:
            UserError: a selection would end in this error.
        """

    @classmethod
    @abstractmethod
    def from_context(cls, config: Any, context: SelectionContext) -> Self:
        """Returns the strategy for one selection.

        Args:
            config: an instance of `Config`.
            context: what to select with.
        """

    @abstractmethod
    def select(self, budget: int, model_params: Any) -> tuple[list[int], Tensor]:
        """Returns what to train on, as CORDS' strategies do.

        Args:
            budget: k, from 1 to N; with N, all examples with weight 1.
            model_params: a state dictionary that is loaded into the model first.

        Returns:
            k unique rows of the training loader's data set, and their weights (k,) float32, finite and >= 0; any number
            of them from 1 to N where the size `varies`.

        Raises:
            UserError: for a budget that there are too few examples for.
        """

    @classmethod
    def stateful(cls) -> bool:
        """Returns whether selections leave something for later ones."""
        return cls.state_dict is not Strategy.state_dict


class PlainStrategy(Strategy):
    """A strategy that is built of its options and context alone. Subclasses write `select`.

    Args:
        config: an instance of `Config`.
        context: what to select with.
    """

    def __init__(self, config: Any, context: SelectionContext) -> None:
        self.config, self.context = config, context

    @classmethod
    def from_context(cls, config: Any, context: SelectionContext) -> Self:
        """Returns the strategy for one selection."""
        return cls(config, context)
