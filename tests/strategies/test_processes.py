"""The adversarial pass and a whole selection, shared by two processes."""

from __future__ import annotations

import torch
from small_problem import Problem
from torch import distributed, multiprocessing

from robustcords.losses.mart import MART
from robustcords.strategies.adv_gradmatch import AdvGradMatchStrategy
from robustcords.strategies.adversarial_pass import adversarial_pass

SIZES = [19, 14]


def results():
    torch.set_num_threads(1)
    problem = Problem(SIZES)  # batches of 16, 16 and 1
    context = problem.context()
    gradients = adversarial_pass(
        problem.model, problem.train_loader, MART(), context.attack, seed=3, num_classes=2, device="cpu"
    )
    strategy = AdvGradMatchStrategy.from_context(AdvGradMatchStrategy.Config(), context)
    rows, weights = strategy.select(12, problem.model.state_dict())
    return [*gradients.deltas, *gradients.features, gradients.labels, torch.tensor(rows), weights]


def work(rank, world, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save(results(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_find_what_one_finds(tmp_path):
    expected = results()
    multiprocessing.spawn(work, args=(2, tmp_path), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))
