"""The adversarial pass and whole selections, shared by several processes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from support.several import together
from support.small_problem import Problem, read
from torch import distributed

from robustcords.config.registry import find
from robustcords.errors import RunError, UserError
from robustcords.losses.mart import MART
from robustcords.runtime import collectives
from robustcords.selection.cords.strategy import CordsStrategy
from robustcords.selection.gradients.adversarial_pass import adversarial_pass
from robustcords.selection.strategies.adv_gradmatch import AdvGradMatchStrategy

SIZES = [19, 14, 0, 9, 5]


CHOICES = [
    *(("adv-gradmatch", granularity) for granularity in ("per_class", "per_gradient", "full")),
    *(("adv-glister", granularity) for granularity in ("per_class", "per_batch", "full")),
    *((name, granularity) for name in ("loss", "el2n") for granularity in ("per_class", "full")),
    *(("adv-craig", granularity) for granularity in ("per_class", "full") if find_spec("submodlib")),
]


def results():
    torch.set_num_threads(1)
    problem = Problem(SIZES, batch=8, validation=[6, 6, 6, 6, 6])  # the last batch has 7 images
    context = problem.context(measure=True)
    gradients = adversarial_pass(
        problem.model, *read(problem.train_loader), MART(), context.attack, seed=3, num_classes=5, device="cpu"
    )
    found = [*gradients.deltas, *gradients.features, gradients.labels]
    for name, granularity in CHOICES:
        kind = find("selector", name)
        strategy = kind.from_context(kind.Config(granularity=granularity), context)
        rows, weights = strategy.select(15, problem.model.state_dict())
        found += [torch.tensor(rows), weights]
    few = Problem([9, 8])  # some processes have no class to choose from
    strategy = AdvGradMatchStrategy.from_context(AdvGradMatchStrategy.Config(), few.context(measure=True))
    rows, weights = strategy.select(5, few.model.state_dict())
    return [*found, torch.tensor(rows), weights, torch.tensor(strategy.report.matching_error)]


PICK = "test_shared_pass:PicksOneRow.pick"


class PicksOneRow(AdvGradMatchStrategy):
    """Does what `pick` may not, in the first class, which the main process picks from."""

    def pick(self, gradients: Any, budget: int, generator: Any) -> Any:
        if len(gradients) < SIZES[0]:
            return super().pick(gradients, budget, generator)
        return torch.zeros(1, dtype=torch.int64), torch.ones(1)


class Fails(CordsStrategy):
    """CORDS failing in a way that nobody foresaw."""

    def upstream(self, *_: Any) -> Any:
        return self

    def own(self) -> Any:
        raise NotImplementedError

    def _run(self, *_: Any) -> Any:
        raise ValueError("no such thing")


def select(strategy: type[Any], **options: Any) -> None:
    problem = Problem(SIZES)
    config = AdvGradMatchStrategy.Config(**options)
    strategy.from_context(config, problem.context()).select(12, problem.model.state_dict())


def not_finite() -> None:
    raise RunError("not finite")


FAILURES: list[Callable[[], Any]] = [
    lambda: select(PicksOneRow),
    lambda: select(PicksOneRow, granularity="full"),
    lambda: select(Fails),
    lambda: collectives.decide_together(not_finite),
]
RAISED = [
    *(
        (UserError, f"{PICK} returned (1,) rows and (1,) weights, expected ({k},) of both: exactly the budget")
        for k in (5, 12)
    ),
    (ValueError, "no such thing"),
    (RunError, "not finite"),
]
ELSEWHERE = [*RAISED[:2], (RunError, "ValueError: no such thing"), RAISED[3]]


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


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_processes_find_what_one_finds_and_fail_with_what_one_fails_with(tmp_path, world):
    expected = results()
    assert [raised(action) for action in FAILURES] == RAISED
    together(work, world, world, tmp_path)
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))
