"""What training draws from torch's global generators, and in which state it leaves them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.small_run import COUNT, chooser, fitted, made_up, network, trainer, vector
from torch import Tensor, nn
from torch.nn import functional as F

from robustcords.engine.modes import torch_seeded
from robustcords.losses.context import Moment
from robustcords.methods.efforts.base import Plan
from robustcords.methods.efforts.uniform import Uniform
from robustcords.rng import derive
from robustcords.selection.selector import everything


def test_dropout_is_drawn_from_the_runs_seed():
    def dropped() -> nn.Module:
        return nn.Sequential(network(), nn.Dropout(0.5), nn.Linear(3, 3))

    start = {key: value.clone() for key, value in dropped().state_dict().items()}
    outcomes = []
    for disturbance in (1, 2):
        model = dropped()
        model.load_state_dict(start)
        torch.manual_seed(disturbance)
        outcomes.append(vector(fitted(model=model)))
    assert torch.equal(*outcomes)
    assert F.cosine_similarity(outcomes[0], torch.cat([v.double().flatten() for v in start.values()]), dim=0) < 1 - 1e-6


@pytest.mark.parametrize("accumulation", [1, 2])
def test_dropout_is_keyed_by_step_and_leaves_the_global_generator_as_it_was(accumulation: int):
    masks: list[Tensor] = []

    class Recorded(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            dropped = super().forward(x)
            if self.training and recording:
                masks.append(dropped == 0)
            return dropped

    recording = False
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.Sigmoid(), Recorded(0.5), nn.Linear(40, 3))
    torch.manual_seed(11)
    before = torch.get_rng_state()
    settings = {"accumulation": accumulation}
    chosen = chooser("adv-glister", loss="trades", select_first=True)
    validated = {"validation": made_up(12, seed=1)}
    made = trainer(model=model, loss="trades", seed=7, settings=settings, selector=chosen, **validated)
    assert torch.equal(torch.get_rng_state(), before)
    rows = made.loader.order(0, everything(31))[0]
    recording = True
    for step in range(3):
        masks.clear()
        made.progress.steps = step
        made.train_step(made.loader.load(rows, everything(COUNT), 0), Moment(0, step, 0.0))
        assert torch.equal(torch.get_rng_state(), before)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(7, "dropout", step, 0))  # what the trainer did in 0.1, and what runs depend on
            expected = [F.dropout(torch.ones_like(mask, dtype=torch.float32), 0.5) == 0 for mask in masks]
        assert len(masks) == 2 * accumulation
        assert all(map(torch.equal, masks, expected))
    made.progress.steps = made.progress.step = 0
    made.fit()
    assert made.callbacks[0].best is not None
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_generator_is_given_back_where_a_step_fails():
    class Failing(Uniform):
        def plan(self, *args: Any, **options: Any) -> Plan:
            raise RuntimeError("no")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no"):
        fitted(effort=Failing)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_on_a_gpu_its_generator_is_seeded_and_given_back(device: str):
    def drawn() -> Tensor:
        return torch.cat([torch.rand(3), torch.rand(3, device=device).cpu()])

    before = torch.get_rng_state(), torch.cuda.get_rng_state(device)
    with torch_seeded(5, torch.device(device)):
        numbers = drawn()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(torch.cuda.get_rng_state(device), before[1])
    torch.manual_seed(5)
    assert torch.equal(numbers, drawn())
