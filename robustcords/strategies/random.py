"""Uniform random subsets: the baseline that every strategy has to beat."""

from __future__ import annotations

import time
from typing import Any, Self

import torch
from torch import Tensor

from robustcords.data.split import apportion
from robustcords.rng import generator
from robustcords.strategies.base import SelectionContext, SelectionReport, Strategy, StrategyConfig
from robustcords.strategies.groups import batches_of, check_budget, labels_of


class RandomSubset(Strategy):
    """A uniform random subset with weights 1, drawn anew at every selection. The model is not looked at.

    ``per_class`` draws from every class in proportion to its size, and so does ``per_gradient``, as nothing depends on
    gradients; ``full`` draws from all examples at once; ``per_batch`` draws whole batches and cuts the last one.
    """

    class Config(StrategyConfig):
        """No options of its own."""

        name: str = "random"

    def __init__(self, config: Config, context: SelectionContext) -> None:
        self.config = config
        self.context = context

    @classmethod
    def from_context(cls, config: Any, context: SelectionContext) -> Self:
        """Returns the strategy for one selection."""
        return cls(config, context)

    def select(self, budget: int, model_params: Any) -> tuple[list[int], Tensor]:
        """Returns ``budget`` rows of the training loader's data set, and weights 1."""
        del model_params
        start = time.perf_counter()
        batches = batches_of(self.context.train_loader)
        rows = [row for batch in batches for row in batch]
        check_budget(budget, len(rows))
        if budget == len(rows):
            return rows, torch.ones(budget)
        places = self._draw(budget, [len(batch) for batch in batches])
        self.report = SelectionReport({"solve": time.perf_counter() - start})
        return [rows[place] for place in places.tolist()], torch.ones(budget)

    def _draw(self, budget: int, sizes: list[int]) -> Tensor:
        """Returns places (k,) among all examples."""
        source = generator(self.context.seed, "random-subset")
        everything = torch.arange(sum(sizes))
        if self.config.granularity == "full":
            return torch.randperm(len(everything), generator=source)[:budget]
        if self.config.granularity == "per_batch":
            parts = everything.split(sizes)
            order = torch.randperm(len(parts), generator=source).tolist()
            return torch.cat([parts[batch] for batch in order])[:budget]
        labels = labels_of(self.context.train_loader)
        classes, counts = labels.unique(return_counts=True)
        groups = zip(classes, apportion(counts.tolist(), budget), strict=True)
        members = [((labels == label).nonzero().view(-1), share) for label, share in groups]
        return torch.cat([rows[torch.randperm(len(rows), generator=source)[:share]] for rows, share in members])
