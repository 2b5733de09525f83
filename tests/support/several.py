"""Several processes of one test, forked by a server that has imported torch already but has started no threads."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

from torch.multiprocessing import start_processes

SERVER: ForkServerContext = multiprocessing.get_context("forkserver")
# The first step of an optimiser imports torch._dynamo, and the digits scikit-learn: longer than most of what is tested.
_SLOW = ("cli.app", "experiments.run", "selection.strategies.adv_glister")
SERVER.set_forkserver_preload(
    [*(f"robustcords.{name}" for name in _SLOW), "sklearn.datasets", "torch._dynamo", "pytest"]
)


def together(work: Callable[..., None], world: int, *arguments: Any) -> None:
    """Calls ``work(rank, *arguments)`` in each process; fails if one of them does."""
    start_processes(work, args=arguments, nprocs=world, start_method="forkserver")
