"""The adversarial pass and a whole selection, shared by two processes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
from small_problem import Problem
from torch import distributed, multiprocessing

from robustcords import processes
from robustcords.errors import RunError, UserError
from robustcords.losses.mart import MART
from robustcords.strategies.adv_gradmatch import AdvGradMatchStrategy
from robustcords.strategies.adversarial_pass import adversarial_pass
from robustcords.strategies.upstream import UpstreamStrategy

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


class PicksOneRow(AdvGradMatchStrategy):
    """Does what `pick` may not."""

    def pick(self, *_: Any) -> Any:
        return torch.zeros(1, dtype=torch.int64), torch.ones(1)


class Fails(UpstreamStrategy):
    """CORDS failing in a way that nobody foresaw."""

    def upstream(self, *_: Any) -> Any:
        return self

    def own(self) -> Any:
        raise NotImplementedError

    def _run(self, *_: Any) -> Any:
        raise ValueError("no such thing")


def select(strategy: type[Any]) -> None:
    problem = Problem(SIZES)
    strategy.from_context(AdvGradMatchStrategy.Config(), problem.context()).select(12, problem.model.state_dict())


def not_finite() -> None:
    raise RunError("not finite")


FAILURES: list[Callable[[], Any]] = [
    lambda: select(PicksOneRow),
    lambda: select(Fails),
    lambda: processes.decide_together(not_finite),
]
RAISED = [
    (UserError, "PicksOneRow.pick returned 1 rows and 1 weights where 7 were asked for"),
    (ValueError, "no such thing"),
    (RunError, "not finite"),
]
ELSEWHERE = [RAISED[0], (RunError, "ValueError: no such thing"), RAISED[2]]


def raised(action: Callable[[], Any]) -> tuple[type[BaseException], str]:
    with pytest.raises((UserError, RunError, ValueError)) as caught:
        action()
    return caught.type, str(caught.value)


def work(rank, world, folder):
    # The limit is for whoever waits for a process that has failed; nothing here takes seconds.
    meeting = {"init_method": f"file://{folder}/meeting", "timeout": timedelta(seconds=60)}
    distributed.init_process_group("gloo", rank=rank, world_size=world, **meeting)
    torch.save(results(), f"{folder}/{rank}.pt")
    failures = [raised(action) for action in FAILURES]
    assert failures == (ELSEWHERE if rank else RAISED), failures
    distributed.destroy_process_group()


def test_two_processes_find_what_one_finds_and_fail_with_what_one_fails_with(tmp_path):
    expected = results()
    assert [raised(action) for action in FAILURES] == RAISED
    multiprocessing.spawn(work, args=(2, tmp_path), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))
