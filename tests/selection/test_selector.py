"""When the selector selects, and what it accepts of a strategy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.cases import cases
from torch import Tensor, nn

from robustcords.attacks.pgd import PGD
from robustcords.config.requirements import VALIDATION_IMAGES
from robustcords.data.images import ImageSet
from robustcords.errors import UserError
from robustcords.losses.sat import SAT
from robustcords.selection.base import SelectionContext, SelectionReport, Strategy, StrategyConfig
from robustcords.selection.selector import SubsetSelector
from robustcords.threats.base import ThreatModel

COUNT = 40


class Fixed(Strategy):
    """Returns what it was told, and keeps what it was asked."""

    answer: Any = None
    report: Any = None
    seen: list[tuple[SelectionContext, int]]

    @classmethod
    def from_context(cls, config: StrategyConfig, context: SelectionContext) -> Fixed:
        strategy = cls()
        strategy.context = context
        return strategy

    def select(self, budget: int, model_params: dict[str, Tensor]) -> tuple[list[int], Tensor]:
        type(self).seen.append((self.context, budget))
        return self.answer or (list(range(budget)), torch.ones(budget))


def fixed(answer: Any = None) -> type[Fixed]:
    return type("Fixed", (Fixed,), {"answer": answer, "seen": [], "__module__": __name__})


def selector(strategy: Any = None, epochs: int = 200, validation: ImageSet | None = None, **options: Any):
    images = ImageSet(torch.zeros(COUNT, 1, 4, 4), torch.arange(COUNT) % 2, ("a", "b"))
    config = StrategyConfig(name="fixed", **{"fraction": 0.25, **options})
    attack = PGD(ThreatModel(epsilon=0.1), steps=1, step_size=0.1)
    made = SubsetSelector(strategy or fixed(), config, validation=validation)
    return made.bind(images, loss=SAT(), attack=attack, epochs=epochs, seed=3)


def model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


@pytest.mark.parametrize(("every", "times"), [(20, 9), (40, 4)])
def test_table_4s_numbers_of_selections(every: int, times: int):
    chooser = selector(epochs=200, select_every=every)
    assert sum(map(chooser.selects, range(200))) == times
    assert not any(map(chooser.skips, range(200)))


def as_cords(kappa: float, fraction: float, epochs: int, every: int) -> list[str]:
    """What CORDS 0.0.4's AdaptiveDSSDataLoader does in each epoch, from its own conditions."""
    select_after = int(kappa * epochs)
    warmup_epochs = math.ceil(select_after * fraction)
    found = []
    for current in range(1, epochs + 1):
        if warmup_epochs < current <= select_after:
            found.append("skip")
        elif current <= warmup_epochs:
            found.append("full")
        else:
            found.append("select" if (current - 1) % every == 0 and current > 1 else "subset")
    return found


@cases("kappa", [0.0, 0.3, 0.5, 0.75])
@cases("fraction", [0.1, 0.3, 1.0])
@cases(("epochs", "every"), [(1, 1), (12, 1), (40, 20), (41, 7)])
def test_the_schedule_is_cords(kappa: float, fraction: float, epochs: int, every: int):
    strategy = fixed()
    chooser = selector(strategy, epochs, warm_start=kappa, fraction=fraction, select_every=every)
    found = []
    for epoch in range(epochs):
        if chooser.skips(epoch):
            found.append("skip")
            continue
        before = len(strategy.seen)
        subset = chooser.subset(epoch, model())
        full = chooser.current is None and len(subset.indices) == COUNT
        found.append("select" if len(strategy.seen) > before else "full" if full else "subset")
    assert found == as_cords(kappa, fraction, epochs, every)


def test_select_first_selects_where_training_on_subsets_starts():
    assert [epoch for epoch in range(9) if selector(select_every=4, select_first=True).selects(epoch)] == [0, 4, 8]
    late = selector(epochs=20, warm_start=0.25, select_every=4, select_first=True)
    assert [epoch for epoch in range(10) if late.selects(epoch)] == [5, 8]


def test_it_starts_from_a_seeded_random_subset():
    first, again = selector().subset(0, model()), selector().subset(0, model())
    assert torch.equal(first.indices, again.indices)
    assert len(first.indices.unique()) == 10
    assert (first.weights == 1).all()
    assert first.selected_at is None
    other = selector(select_every=1)
    other.seed = 4
    assert not torch.equal(other.subset(0, model()).indices, first.indices)


def test_a_subset_stays_until_the_next_selection():
    rows = torch.arange(39, 29, -1)
    strategy = fixed((rows.tolist(), torch.linspace(0, 1, 10)))
    chooser = selector(strategy, select_every=3)
    subsets = [chooser.subset(epoch, model()) for epoch in range(6)]
    assert [subset.selected_at for subset in subsets] == [None, None, None, 3, 3, 3]
    assert torch.equal(subsets[5].indices, rows)
    assert torch.equal(subsets[5].weights, torch.linspace(0, 1, 10))
    again = selector(strategy, select_every=3)
    again.load_state_dict(chooser.state_dict())
    assert torch.equal(again.subset(5, model()).indices, rows)
    assert len(strategy.seen) == 1


def test_more_epochs_do_not_move_a_warm_start_that_has_begun():
    options = {"fraction": 0.5, "warm_start": 0.5, "select_every": 1}
    first, longer = selector(epochs=8, **options), selector(epochs=40, **options)
    longer.load_state_dict(first.state_dict())
    assert [longer.skips(epoch) for epoch in range(8)] == [first.skips(epoch) for epoch in range(8)]
    assert [longer.selects(epoch) for epoch in range(8)] == [False] * 4 + [True] * 4
    assert longer.current is None


def test_every_selection_has_its_own_seed_and_the_whole_split_in_order():
    strategy = fixed()
    chooser = selector(strategy, select_every=1)
    chooser.subset(1, model())
    chooser.subset(2, model())
    (first, budget), (second, _) = strategy.seen
    assert first.seed != second.seed
    assert budget == 10
    assert torch.equal(torch.cat([y for _, y in first.train_loader]), torch.arange(COUNT) % 2)
    assert first.val_loader is None


@cases(("fraction", "budget"), [(1e-9, 1), (0.25, 10), (0.26, 10), (0.27, 11), (0.99, 40), (1.0, 40)])
def test_the_budget_is_the_rounded_fraction(fraction: float, budget: int):
    assert selector(fraction=fraction).budget == budget


ROWS, ONES = list(range(10)), torch.ones(10)


@cases(
    ("answer", "reason"),
    [
        (
            (list(range(9)), torch.ones(9)),
            r"\(9,\) rows and \(9,\) weights, expected \(10,\) of both: exactly the budget",
        ),
        ((ROWS, torch.ones(9)), r"\(10,\) rows and \(9,\) weights, expected \(10,\)"),
        ((ROWS, torch.ones(10, 1)), r"\(10,\) rows and \(10, 1\) weights, expected \(10,\)"),
        ((torch.arange(10).view(10, 1), ONES), r"\(10, 1\) rows and \(10,\) weights"),
        ((torch.arange(10) + 0.5, ONES), r"rows of type torch\.float32, expected whole numbers"),
        ((ONES > 0, ONES), r"rows of type torch\.bool, expected whole numbers"),
        ((ROWS, ["a"] * 10), "no rows and weights: TypeError"),
        (({"rows": ROWS}), r"a dict, expected \(rows, weights\)"),
        (([0] * 10, ONES), "rows that are not unique and from 0 to 39"),
        (([-1, *range(9)], ONES), "rows that are not unique and from 0 to 39"),
        ((list(range(31, 41)), ONES), "rows that are not unique and from 0 to 39"),
        ((ROWS, torch.full((10,), -1.0)), "weights that are negative or not finite"),
        ((ROWS, torch.full((10,), torch.nan)), "weights that are negative or not finite"),
        ((ROWS, torch.zeros(10)), "weights that are all 0"),
    ],
)
def test_a_strategys_mistakes_are_named(answer: Any, reason: str):
    with pytest.raises(UserError, match=f"^strategy test_selector:Fixed returned {reason}"):
        selector(fixed(answer)).select(0, model())


def test_a_strategy_that_needs_validation_says_so_at_once():
    strategy = fixed()
    strategy.requires = frozenset({VALIDATION_IMAGES})
    with pytest.raises(UserError, match=r"'fixed' selects on a validation split: set data\.validation_fraction > 0"):
        selector(strategy)


def test_it_keeps_what_the_strategy_reports():
    strategy = fixed()
    strategy.report = SelectionReport({"solve": 0.1}, 0.2, 0.3)
    chooser = selector(strategy)
    assert chooser.report is None
    chooser.select(0, model())
    assert chooser.report is strategy.report
    chooser.select(0, model(), measure=True)
    assert [context.measure for context, _ in strategy.seen] == [False, True]


def test_what_a_strategy_draws_from_global_generators_repeats():
    class Lots(Fixed):
        seen: list[tuple[SelectionContext, int]] = []  # noqa: RUF012 -- as its base has it

        def select(self, budget: int, model_params: dict[str, Tensor]) -> tuple[list[int], Tensor]:
            return torch.randperm(COUNT)[:budget].tolist(), torch.from_numpy(np.random.rand(budget))

    network, before = model(), torch.get_rng_state()
    first, again = (selector(Lots).select(1, network) for _ in range(2))
    assert torch.equal(first.indices, again.indices)
    assert torch.equal(first.weights, again.weights)
    assert not torch.equal(first.indices, selector(Lots).select(2, network).indices)
    assert torch.equal(torch.get_rng_state(), before)
