"""Uniform random subsets, the baseline."""

from __future__ import annotations

import time
from typing import Any

import torch
from pydantic import model_validator
from torch import Tensor

from robustcords.data.split import apportion
from robustcords.rng import generator
from robustcords.selection.base import PlainStrategy, SelectionContext, SelectionReport, StrategyConfig
from robustcords.selection.gradients.groups import batches_of, check_budget, labels_of


class RandomSubset(PlainStrategy):
    """A uniform random subset with weights 1, redrawn at every selection. The model is not used.

    ``fresh`` draws a new subset every epoch, without repetition: the baseline that costs nothing and that most methods
    of the literature do not beat (Okanovic et al. 2024, "Repeated Random Sampling for Minimizing the Time-to-Accuracy
    of Learning", https://arxiv.org/abs/2305.18424).

    ``per_class``, and here also ``per_gradient``, draw from every class in proportion to its size, ``full`` from all
    examples at once, and ``per_batch`` whole batches, the last one truncated.

    Example:
        >>> config = RandomSubset.Config(fresh=True)
        >>> selector = SubsetSelector(RandomSubset, config)
    """

    class Config(StrategyConfig):
        """Options of random subsets.

        Attributes:
            fresh: draw another subset in every epoch, without repetition (RS2, Okanovic et al. 2024): one permutation
                is used slice by slice, so that no image comes a second time before all have come once. When it ends,
                its remaining images come first and a new one follows. ``select_every`` is 1, and ``granularity`` has no
                effect.
        """

        name: str = "random"
        fresh: bool = False

        @model_validator(mode="before")
        @classmethod
        def _every_epoch(cls, values: Any) -> Any:
            if not (isinstance(values, dict) and values.get("fresh") is True):
                return values
            for key, wanted in {"select_every": 1, "select_first": True}.items():
                if values.get(key, wanted) != wanted:
                    raise ValueError(f"fresh = true draws in every epoch: leave {key} out")
            return {**values, "select_every": 1, "select_first": True}

    uses_model = False

    def __init__(self, config: Config, context: SelectionContext) -> None:
        super().__init__(config, context)
        self._left = torch.zeros(0, dtype=torch.int64)

    def select(self, budget: int, model_params: Any) -> tuple[list[int], Tensor]:
        """Returns ``budget`` rows of the training loader's data set, and weights 1."""
        del model_params
        start = time.perf_counter()
        batches = batches_of(self.context.train_loader)
        rows = [row for batch in batches for row in batch]
        check_budget(budget, len(rows))
        if budget == len(rows):
            return rows, torch.ones(budget)
        sizes = [len(batch) for batch in batches]
        places = self._next(budget, sum(sizes)) if self.config.fresh else self._draw(budget, sizes)
        self.report = SelectionReport({"solve": time.perf_counter() - start})
        return [rows[place] for place in places.tolist()], torch.ones(budget)

    def state_dict(self) -> dict[str, Any]:
        """Returns the rest of the permutation that fresh subsets are taken from."""
        return {"left": self._left}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._left = state["left"]

    def _next(self, budget: int, size: int) -> Tensor:
        """Returns the next rows (k,) of successive permutations, without repetition."""
        first = self._left[:budget]
        self._left = self._left[budget:]
        if len(first) < budget:
            order = torch.randperm(size, generator=generator(self.context.seed, "random-subset"))
            # What has just been taken comes last in the new permutation, so that it is not taken again now.
            again = torch.isin(order, first)
            order = torch.cat([order[~again], order[again]])
            count = budget - len(first)
            first, self._left = torch.cat([first, order[:count]]), order[count:]
        return first

    def _draw(self, budget: int, sizes: list[int]) -> Tensor:
        """Returns random rows (k,)."""
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
