"""InfoBatch: skips a random share of the examples with low loss in each epoch."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from robustcords.rng import Noise, derive
from robustcords.selection.base import PlainStrategy, StrategyConfig
from robustcords.selection.gradients.groups import rows_of
from robustcords.selection.observer import LastLosses


class InfoBatch(PlainStrategy):
    """Randomly prunes examples below the mean loss, and reweights the others to compensate (Qin et al. 2024).

    Each is pruned with probability r, and the kept ones have weight 1 / (1 - r). Examples at or above the mean, and
    those without a loss so far, are kept with weight 1. The last share of the epochs trains on all examples.

    Qin et al. 2024, "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning",
    https://arxiv.org/abs/2303.04947. An example's loss is that of its last training step, so a selection costs no pass
    over the data.

    The expected weight of every example is 1, and the gradient unbiased up to the learning rate; for that the weights'
    normaliser is fixed. The number of examples varies by epoch. ``granularity`` is ignored.

    Example:
        >>> selector = SubsetSelector(InfoBatch, InfoBatch.Config())
    """

    class Config(StrategyConfig):
        """Options of InfoBatch.

        Attributes:
            fraction: always 1: the losses determine how many examples an epoch has.
            select_every: number of epochs between selections; the paper prunes in every epoch.
            prune: probability with which an example below the mean loss is left out (r in the paper).
            anneal: share of the epochs, at the end, that train on all data.
        """

        name: str = "infobatch"
        fraction: Annotated[float, Field(ge=1, le=1)] = 1.0
        select_every: Annotated[int, Field(ge=1)] = 1
        prune: Annotated[float, Field(ge=0, lt=1)] = 0.5
        anneal: Annotated[float, Field(ge=0, le=1)] = 0.125

        @field_validator("fraction", mode="before")
        @classmethod
        def _of_no_size(cls, value: Any) -> Any:
            if value != 1:
                raise ValueError("the losses decide how many examples an epoch has: set it to 1.0, or leave it out")
            return value

    uses_model = False
    observer = LastLosses
    varies = True
    fixes_normaliser = True

    def select(self, budget: int, model_params: Any) -> tuple[list[int], Tensor]:
        """Returns the kept rows, in order, and their weights 1 or 1 / (1 - r)."""
        del budget, model_params
        rows = torch.tensor(rows_of(self.context.train_loader))
        weights = torch.ones(len(rows))
        if self.context.progress < 1 - self.config.anneal:
            losses = self._losses()[rows]
            learned = losses < losses.nanmean()  # never of NaN
            numbers = self.context.numbers[rows]
            drawn = Noise(derive(self.context.seed, "prune"), numbers).uniform(()).view(-1)
            kept = ~learned | (drawn >= self.config.prune)
            weights = torch.where(learned, 1 / (1 - self.config.prune), 1.0)[kept]
            rows = rows[kept]
        return rows.tolist(), weights

    def _losses(self) -> Tensor:
        observer = self.context.observer
        assert isinstance(observer, LastLosses)
        return observer.losses
