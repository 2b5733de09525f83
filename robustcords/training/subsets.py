"""The training subset of each epoch: all examples, or the selector's choice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustcords.data.images import Images
from robustcords.engine.inference import Inference
from robustcords.losses.base import Loss
from robustcords.losses.check import EXAMPLES, check_loss
from robustcords.runtime import collectives
from robustcords.selection.selector import Subset, SubsetSelector, everything


class EpochSubsets:
    """Each epoch's examples, in a run that may have been interrupted within an epoch.

    Args:
        selector: chooses subsets; None trains every epoch on all examples.
        train: the training split.
    """

    def __init__(self, selector: SubsetSelector | None, train: Images) -> None:
        self.selector, self.train, self.count = selector, train, len(train)

    @property
    def usual(self) -> int:
        """How many examples an ordinary epoch has."""
        return self.count if self.selector is None else self.selector.budget

    def sizes(self) -> list[int]:
        """Returns how many examples an epoch may have."""
        if self.selector is None:
            return [self.count]
        return [self.selector.budget, *([self.count] if self.selector.config.warm_start else [])]

    def skips(self, epoch: int) -> bool:
        """Returns whether an epoch is left out, its time spent by a warm start on full data."""
        return self.selector is not None and self.selector.skips(epoch)

    def check(self, model: nn.Module, loss: Loss) -> None:
        """Checks the loss, and that the selector can select by this model; see `SubsetSelector.check`."""
        if self.selector:  # which checks the same loss
            self.selector.check(model)
        else:
            check_loss(loss, model, *self.train.first(EXAMPLES, next(model.parameters()).device))

    @property
    def proxy(self) -> Inference | None:
        """The selector's proxy, by which subsets are selected; None where there is none."""
        return self.selector.proxy if self.selector else None

    @property
    def proxy_seconds(self) -> float:
        """The time that training the selector's proxy took."""
        return self.selector.proxy_seconds if self.selector else 0.0

    def observe(self, rows: Tensor, losses: Tensor) -> None:
        """Tells a selector whose strategy learns from training of a step; see `SubsetSelector.observe`.

        Args:
            rows: (n,) of the training split: the examples of the global batch.
            losses: (b,) of this process's share of them.
        """
        if self.selector and self.selector.observer:
            self.selector.observe(rows, torch.cat(collectives.gather_rows(losses)).cpu())

    def of(
        self, epoch: int, model: nn.Module, on_batch: Callable[[int, int], None], *, progress: float, begun: bool
    ) -> tuple[Subset, bool]:
        """Returns an epoch's subset, and whether it was selected just now.

        Args:
            epoch: from 0.
            model: as the selector takes it.
            on_batch: called with (done, total) batches of a selection.
            progress: share of the training that is over.
            begun: the epoch has been begun already, and continues with what it had.
        """
        if self.selector is None:
            return everything(self.count), False
        before = self.selector.current
        if begun and epoch >= self.selector.full_until:
            return before or everything(self.count), False
        subset = self.selector.subset(epoch, model, on_batch, progress=progress)
        return subset, self.selector.current is not before
