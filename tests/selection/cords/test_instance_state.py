"""What CORDS' strategies, and users' subclasses of them, leave in their attributes for their next selection."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.small_problem import images, network
from torch import nn

from robustcords.attacks.pgd import PGD
from robustcords.losses.sat import SAT
from robustcords.recipe import tables
from robustcords.selection._cords import DataSelectionStrategy
from robustcords.selection.cords.instance_state import changed, put, taken
from robustcords.selection.selector import SubsetSelector
from robustcords.storage.checkpoint import Checkpoints, as_kept
from robustcords.threats.base import ThreatModel

SIZES = [20, 20]
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory'", "ignore:'cgi'")


class Rotating(DataSelectionStrategy):
    """Draws from its own generators, takes longest gradients first, and never the same example twice in a row."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self.generator = torch.Generator().manual_seed(seed)
        self.draws = (random.Random(seed), np.random.default_rng(seed), np.random.RandomState(seed % 2**32))
        self.last: set[int] = set()
        self.mean = np.zeros(self.N_trn, dtype=np.float32)
        self.table: dict[tuple[int, int], list[float]] = {}
        self.best = np.float64("-inf")

    def select(self, budget: int, model_params: Any) -> tuple[list[int], Any]:
        self.update_model(model_params)
        self.compute_gradients()
        self.mean[:] = 0.5 * self.mean + self.grads_per_elem.norm(dim=1).numpy()
        noise = torch.rand(self.N_trn, generator=self.generator).double().numpy()
        python, modern, legacy = self.draws
        scale = python.random() + modern.random() + legacy.rand()
        score = self.mean + 0.1 * scale * noise
        score[list(self.last)] -= 100
        rows = np.argsort(-score)[:budget].tolist()
        self.last = set(rows)
        self.table[len(self.table), budget] = [float(scale)]
        self.best = max(self.best, score.max())
        return rows, torch.ones(budget) * (1 + len(self.table))


class Says(Rotating):
    """Says itself what it keeps."""

    def state_dict(self) -> dict[str, Any]:
        return {"mean": torch.from_numpy(self.mean)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"].numpy() + 1


class HasMore(Rotating):
    """Keeps an object of a class of its own, and a tensor with a graph."""

    def select(self, budget: int, model_params: Any) -> tuple[list[int], Any]:
        self.tracker = getattr(self, "tracker", Tracker())
        self.weight = nn.Parameter(torch.ones(2))
        return super().select(budget, model_params)


class Tracker:
    """Something that no checkpoint can hold."""


def selector(name: str, **options: Any) -> SubsetSelector:
    table = {"name": name, "fraction": 0.25, "select_every": 1, "model_mode": "eval", **options}
    config = tables.find("selector", name).Config(**table)
    attack = PGD(ThreatModel(epsilon=0.1), steps=1, step_size=0.1)
    found = tables.find("selector", name)
    made = SubsetSelector(found, config, validation=images(SIZES, seed=1))
    return made.bind(images(SIZES), loss=SAT(), attack=attack, epochs=9)


def chosen(made: SubsetSelector, epochs: range) -> list[Any]:
    model = network(len(SIZES)).eval()
    found = [made.select(epoch, model) for epoch in epochs]
    return [(subset.indices.tolist(), subset.weights.tolist()) for subset in found]


@pytest.mark.parametrize("name", ["Rotating", "Says", "HasMore"])
def test_selections_after_a_checkpoint_are_those_without_one(name: str, tmp_path: Path):
    name = f"{__name__}:{name}"
    whole = chosen(selector(name), range(6))
    first, second = selector(name), selector(name)
    found = chosen(first, range(3))
    Checkpoints(tmp_path).save(1, {"selector": first.state_dict()})
    second.load_state_dict(Checkpoints(tmp_path).latest()[1]["selector"])
    assert [*found, *chosen(second, range(3, 6))] == whole
    fresh = selector(name)
    assert chosen(fresh, range(3, 6)) != whole[3:], "what was kept matters"


def test_one_object_of_cords_would_choose_the_same():
    """As in CORDS' code, where the object lives for the whole run."""
    made = selector(f"{__name__}:Rotating")
    model = network(len(SIZES)).eval()
    found = [made.select(epoch, model).indices.tolist() for epoch in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        lasting: list[Any] = []
        build = made.strategy.upstream

        def upstream(self: Any, *arguments: Any) -> Any:
            new = build(self, *arguments)
            lasting.append(lasting[0] if lasting else new)
            return lasting[-1]

        patch.setattr(made.strategy, "upstream", upstream)
        patch.setattr(made.strategy, "_begin", lambda *_: {})
        patch.setattr(made.strategy, "_end", lambda *_: None)
        again = selector(f"{__name__}:Rotating")
        assert [again.select(epoch, model).indices.tolist() for epoch in range(4)] == found


def test_random_subsets_of_cords_stay_unless_they_are_online():
    name = "cords.selectionstrategies.SL:RandomStrategy"
    offline, online = (chosen(selector(name, online=value), range(3)) for value in (False, True))
    assert offline[0] == offline[1] == offline[2]
    assert len({tuple(rows) for rows, _ in online}) == 3


def test_what_cannot_be_kept_is_named_once(caplog: pytest.LogCaptureFixture):
    made = selector(f"{__name__}:HasMore")
    chosen(made, range(3))
    name = made.config.name
    assert caplog.messages == [
        f"{name}: every selection begins with new tracker (Tracker), weight (Parameter): these attributes cannot be "
        "kept; write state_dict for them"
    ]


@pytest.mark.parametrize(
    ("name", "options"), [("GLISTERStrategy", {"greedy": "RGreedy", "r": 15}), ("GradMatchStrategy", {})]
)
def test_cords_own_strategies_leave_nothing(name: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture):
    made = selector(f"cords.selectionstrategies.SL:{name}", **options)
    chosen(made, range(2))
    assert made.strategy_state == {"attributes": {}, "lost": []}
    assert caplog.messages == []


def test_what_is_put_back_goes_on_where_it_was():
    class Some:
        pass

    one, other = Some(), Some()
    one.device = "cpu"
    before, _ = taken(one, [])
    one.plain = [1, 2.5, float("nan"), True, None, "a", (1, (2,)), {3, 1}, {(1, 2): "b", 4: {"kind": 1}}]
    one.arrays = [np.arange(3, dtype=np.int16), np.float32(0.1), np.bool_(True), torch.ones(2, dtype=torch.bfloat16)]
    one.draws = [torch.Generator().manual_seed(3), random.Random(3), np.random.default_rng(3), np.random.RandomState(3)]
    for draw in (lambda g: torch.rand(1, generator=g[0]), lambda g: g[1].gauss(0, 1), lambda g: g[3].normal()):
        draw(one.draws)
    state, lost = taken(one, [])
    assert lost == []
    put(other, as_kept(changed(before, state)))
    assert repr(other.plain) == repr(one.plain)
    assert [type(value) for value in other.arrays] == [type(value) for value in one.arrays]
    assert all(bool((a == b).all()) and a.dtype == b.dtype for a, b in zip(one.arrays, other.arrays, strict=True))
    for draw in (
        lambda g: torch.rand(3, generator=g[0]).tolist(),
        lambda g: [g[1].random(), g[1].gauss(0, 1)],
        lambda g: g[2].normal(size=3).tolist(),
        lambda g: g[3].normal(size=3).tolist(),
    ):
        assert draw(one.draws) == draw(other.draws)
