"""The subset selector: when to select, how many examples, and from which inputs."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from robustcords.attacks.base import Attack
from robustcords.config.requirements import VALIDATION_IMAGES
from robustcords.data.images import Images
from robustcords.data.split import stratified_split
from robustcords.engine import contracts
from robustcords.engine.foreign_calls import left_alone
from robustcords.engine.inference import Inference
from robustcords.engine.modes import seeded
from robustcords.errors import UserError
from robustcords.losses.base import Loss
from robustcords.losses.check import EXAMPLES, check_loss
from robustcords.losses.context import Moment
from robustcords.rng import derive, generator
from robustcords.runtime import collectives
from robustcords.selection.base import Augment, SelectionContext, SelectionReport, Strategy, StrategyConfig
from robustcords.selection.observer import Observer
from robustcords.storage.state_check import give_back, refuse_half, refuse_unkeepable, state_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subset:
    """What an epoch trains on.

    Attributes:
        indices: (k,) int64, unique, in the numbering of the training split.
        weights: (k,) float32, >= 0.
        selected_at: the epoch it was selected in; None where nothing was selected (full data, or the initial random
            subset).
        normaliser: what each example of a batch adds to what the batch's weighted losses are divided by, where the
            strategy fixes it; None where that is the example's own weight.
    """

    indices: Tensor
    weights: Tensor
    selected_at: int | None = None
    normaliser: float | None = None

    @property
    def effective_size(self) -> float:
        """Kish's ``(sum w)^2 / sum w^2``: k for equal weights, less the more a few examples outweigh the others."""
        weights = self.weights.double()
        return float(weights.sum() ** 2 / weights.square().sum())

    def total(self, places: Tensor) -> float:
        """Returns what the weighted losses of a batch are divided by.

        Args:
            places: of the batch's examples in this subset.
        """
        if self.normaliser is not None:
            return len(places) * self.normaliser
        # A batch of nothing but weight 0 has no gradient; the floor keeps 0 / 0 out of it.
        return max(float(self.weights[places].sum()), 1e-12)

    def record(self, epoch: int, train: Images) -> dict[str, Any] | None:
        """Returns what the metrics say of a selection, in its epoch: by class, and how evenly; None in others."""
        if self.selected_at != epoch:
            return None
        classes = train.labels[self.indices].bincount(minlength=len(train.classes)).tolist()
        return {"classes": classes, "effective_size": self.effective_size}


def everything(size: int) -> Subset:
    """Returns the whole training split with weight 1."""
    return Subset(torch.arange(size), torch.ones(size))


class SubsetSelector:
    """Chooses the subset of every epoch with a strategy.

    As in CORDS, training starts from a random subset and selects at every multiple of `select_every`; a new strategy
    object is built each time, so a selection depends on the weights, the seed and the epoch alone, and on what the
    strategy's ``state_dict`` said after the last one. A selection that is broken off leaves no trace in that.

    The trainer binds its selector to what it trains with. In a custom training loop, call `bind` once and `subset` at
    the start of each epoch.

    Args:
        strategy: a subclass of `robustcords.selection.base.Strategy`.
        config: the strategy's options.
        validation: the validation split, for strategies that need one.
        proxy: another model, with its own weights, to select by; None for the one that is trained.

    Attributes:
        current: the subset that is trained on now; None before the first epoch.
        report: what the strategy reports of the last selection, on the process that made it, or None.
        strategy_state: the main process's strategy's state after the last selection; None before the first one.
        observer: what the strategy learns from training, or None.
        proxy: the model to select by, as attacks run it; None for the one that is trained.
        proxy_seconds: the time that training the proxy took.

    Raises:
        UserError: the strategy needs a validation split and there is none.

    Example:
        >>> selector = SubsetSelector(AdvGradMatchStrategy, AdvGradMatchStrategy.Config(fraction=0.3))
        >>> subset = selector.bind(train, loss=loss, attack=attack, epochs=10).subset(0, model)
    """

    train: Images
    loss: Loss
    attack: Attack
    batch_size: int
    seed: int
    lr: float | None
    augment: Augment | None
    observer: Observer | None
    current: Subset | None
    strategy_state: dict[str, Any] | None

    def __init__(
        self,
        strategy: type[Strategy],
        config: StrategyConfig,
        *,
        validation: Images | None = None,
        proxy: nn.Module | None = None,
    ) -> None:
        if VALIDATION_IMAGES in strategy.requires and not validation:
            raise UserError(f"selector {config.name!r} selects on a validation split: set data.validation_fraction > 0")
        self.strategy = strategy
        self.config = config
        self.validation = validation
        self.proxy = proxy if proxy is None or isinstance(proxy, Inference) else Inference(proxy)
        self.proxy_seconds = 0.0
        self.report: SelectionReport | None = None

    def bind(
        self,
        train: Images,
        *,
        loss: Loss,
        attack: Attack,
        epochs: float = 0,
        batch_size: int = 128,
        seed: int = 0,
        lr: float | None = None,
        augment: Augment | None = None,
    ) -> Self:
        """Sets what training uses, forgets earlier selections, and returns the selector.

        Args:
            train: the training split.
            loss: the training loss.
            attack: the training attack.
            epochs: the length of training, which the warm start is a fraction of; `set_epochs` changes it.
            batch_size: of the adversarial pass, and of the batches that ``granularity = "per_batch"`` selects.
            seed: the run's seed.
            lr: the optimizer's peak learning rate, for strategies that use it.
            augment: the training augmentation, for strategies that select from augmented images.
        """
        self.train, self.loss, self.attack = train, loss, attack
        self.batch_size, self.seed, self.lr, self.augment = batch_size, seed, lr, augment
        self.set_epochs(epochs)
        self._forget()
        self._checked = False
        return self

    def _forget(self) -> None:
        self.current = self.report = self.strategy_state = None
        self.observer = self.strategy.build_observer(self.config, len(self.train))

    def set_epochs(self, epochs: float) -> None:
        """Sets the length of training, which the warm start is a fraction of."""
        self.epochs = epochs
        self.first = int(self.config.warm_start * epochs)
        self.full_until = math.ceil(self.config.fraction * self.first)

    def on_part(self, parts: int) -> SubsetSelector:
        """Returns a selector of the same kind for one in so many images of each class, to measure what it takes."""
        small = copy.copy(self)
        if parts > 1:
            small.train = self._part(self.train, parts)
            small.validation = self._part(self.validation, parts) if self.validation else None
        small._forget()
        return small

    def _part(self, images: Images, parts: int) -> Images:
        return images.subset(stratified_split(images.labels, 1 - 1 / parts, self.seed)[0])

    @property
    def budget(self) -> int:
        """How many examples a subset has: the fraction of the training split, rounded, at least 1."""
        return self.config.budget_of(len(self.train))

    def skips(self, epoch: int) -> bool:
        """Returns whether an epoch is left out, its time spent by the warm start on full data (CORDS' kappa)."""
        return self.full_until <= epoch < self.first

    def selects(self, epoch: int) -> bool:
        """Returns whether a new subset is selected at the start of an epoch (from 0)."""
        if epoch == self.first and self.config.select_first:
            return True
        return epoch > 0 and epoch >= self.first and epoch % self.config.select_every == 0

    def subset(
        self,
        epoch: int,
        model: nn.Module,
        on_batch: Callable[[int, int], None] | None = None,
        *,
        progress: float | None = None,
    ) -> Subset:
        """Returns the subset that an epoch trains on, selecting it now where it is time to.

        Args:
            epoch: from 0.
            model: the model as it is now; its weights and mode are left alone.
            on_batch: called with (done, total) batches of the adversarial pass.
            progress: share of the training that is over, in [0, 1]; None for that of its epochs.

        Raises:
            UserError: the strategy returned no subset; the first call raises what `check` does, too.
        """
        self._check_once(model)
        if epoch < self.full_until:
            return everything(len(self.train))
        if self.selects(epoch):
            self.current = self.select(epoch, model, on_batch, progress=progress)
        elif self.current is None:
            order = torch.randperm(len(self.train), generator=generator(self.seed, "initial-subset"))
            self.current = Subset(order[: self.budget].sort().values, torch.ones(self.budget))
        return self.current

    def select(
        self,
        epoch: int,
        model: nn.Module,
        on_batch: Callable[[int, int], None] | None = None,
        *,
        measure: bool = False,
        progress: float | None = None,
    ) -> Subset:
        """Returns the subset that the strategy selects with these weights, and leaves a `report` of it.

        Args:
            epoch: from 0; another epoch has other random numbers.
            model: the model; its weights and mode are left alone.
            on_batch: called with (done, total) batches of the adversarial pass.
            measure: have the report say how well the subset's gradients match those of all the data.
            progress: share of the training that is over, in [0, 1]; None for that of its epochs.

        Raises:
            UserError: the strategy returned no subset or changed the model, its state cannot be kept, or it does
                not take it back.
        """
        self._check_once(model)
        model = self.proxy or model
        if progress is None:
            progress = min(epoch / self.epochs, 1.0) if self.epochs else 0.0
        context = self._context(epoch, model, on_batch, measure=measure, progress=progress)
        # What draws from global generators, as code from outside may, draws the same again.
        with left_alone(model, f"strategy {contracts.title(self.strategy)}"), seeded(context.seed, context.device):
            strategy = self.strategy.from_context(self.config, context)
            if self.strategy_state is not None and strategy.stateful():
                give_back(self._source, strategy, self.strategy_state)
            found = strategy.select(self.budget, model.state_dict())
        self.report = strategy.report
        budget = None if strategy.varies else self.budget
        made = contracts.subset(strategy, found, budget, len(self.train))
        rows, weights = collectives.decide_together(lambda: made)
        weights = weights.float()
        normaliser = float(weights.double().mean()) if strategy.fixes_normaliser else None
        subset = Subset(rows, weights, epoch, normaliser)
        # Last of all, so that a selection that does not come to its end is begun again from the state before it.
        stateful = strategy.stateful()
        self.strategy_state = collectives.decide_together(lambda: state_of(self._source, strategy)) if stateful else {}
        return subset

    def observe(self, rows: Tensor, losses: Tensor) -> None:
        """Tells the strategy's observer of a training step; nothing where it has none.

        Args:
            rows: (n,) int64, unique, of the training split: the examples of the global batch.
            losses: (n,) the training loss of each, before weights; one that is not finite says nothing and is left out.
        """
        if self.observer:
            known = losses.isfinite()
            self.observer.observe(rows[known], losses[known].float())

    def check(self, model: nn.Module) -> None:
        """Finds out before training whether the strategy can select by this model, and its state be kept.

        Builds the strategy, and where it keeps a state has its first one kept and given back. `subset` and `select`
        call this first where nobody has.

        Args:
            model: as it will be in a selection; its weights and mode are left alone.

        Raises:
            UserError: it cannot, or the selector has not been bound.
        """
        if "train" not in vars(self):
            raise UserError(f"{self._source}: call bind(train, loss=..., attack=...) first; a Trainer does so itself")
        refuse_half(self._source, self.strategy)
        if self.observer:
            refuse_unkeepable(f"{self._source}: its observer", self.observer)
        check_loss(self.loss, model, *self.train.first(EXAMPLES, next(model.parameters()).device))
        model = self.proxy or model
        context = self._context(0, model)
        with left_alone(model, f"strategy {contracts.title(self.strategy)}"), seeded(context.seed, context.device):
            self.strategy.check(self.config, context)
            strategy = self.strategy.from_context(self.config, context)
            if strategy.stateful():
                refuse_unkeepable(self._source, strategy)
        self._checked = True

    def _check_once(self, model: nn.Module) -> None:
        if not self._checked:
            self.check(model)

    @property
    def _source(self) -> str:
        """What messages call the strategy."""
        return f"selector {self.config.name!r}"

    def _context(
        self,
        epoch: int,
        model: nn.Module,
        on_batch: Callable[[int, int], None] | None = None,
        *,
        measure: bool = False,
        progress: float = 0.0,
    ) -> SelectionContext:
        return SelectionContext(
            train_loader=self._loader(self.train),
            val_loader=self._loader(self.validation) if self.validation else None,
            model=model,
            loss=self.loss.at(Moment(epoch, 0, progress)),
            attack=self.attack,
            num_classes=len(self.train.classes),
            device=next(model.parameters()).device,
            seed=derive(self.seed, "selection", epoch),
            logger=log,
            on_batch=on_batch,
            measure=measure,
            lr=self.lr,
            augment=self.augment,
            progress=progress,
            observer=self.observer,
        )

    def _loader(self, images: Images) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(images, batch_size=self.batch_size, shuffle=False)

    def state_dict(self) -> dict[str, Any]:
        """Returns the current subset, the strategy's state, and the warm start, which more epochs do not move."""
        return {
            "current": vars(self.current) if self.current else None,
            "strategy": self.strategy_state,
            "observer": self.observer.state_dict() if self.observer else None,
            "full_until": self.full_until,
            "first": self.first,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.current = Subset(**state["current"]) if state["current"] else None
        self.strategy_state = state.get("strategy")  # 0.1 kept none
        if self.observer:
            self.observer.load_state_dict(state["observer"])
        self.full_until, self.first = state["full_until"], state["first"]
