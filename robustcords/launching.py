"""Several processes on CPUs under ``accelerate launch --cpu --num_processes N``.

Accelerate 1.15 hands N on to mpirun alone; without it, it starts one process and says nothing. Then torchrun, which it
uses for GPUs, is started here in its place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_OPTIONS = ("--num_processes", "--num-processes")


def missing_processes(launcher: Sequence[str], environment: Mapping[str, str]) -> int:
    """Returns how many processes ``accelerate launch`` was asked for on this CPU and did not start; 0 if it did.

    Args:
        launcher: the command line of the process that started this one.
        environment: of this process.
    """
    alone = not any(name in environment for name in _RANKS)
    if not alone or environment.get("ACCELERATE_USE_CPU", "").lower() != "true":
        return 0
    words = [part for word in launcher for part in word.split("=", 1)]
    asked = [value for option, value in pairwise(words) if option in _OPTIONS]
    number = int(asked[-1]) if asked and asked[-1].isdecimal() else 1
    return number if number > 1 else 0


def spread(target: Sequence[str]) -> None:
    """Replaces this process by torchrun, where `missing_processes` finds that there should be several; else returns.

    Args:
        target: what torchrun starts: a script, or ``"-m"`` and a module. The arguments of this process follow.
    """
    if "ACCELERATE_USE_CPU" not in os.environ:
        return
    import psutil  # type: ignore[import-untyped]  # Accelerate depends on it

    parent = psutil.Process().parent()
    if number := missing_processes(parent.cmdline() if parent else [], os.environ):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)]
        os.execv(sys.executable, [sys.executable, *torchrun, *target, *sys.argv[1:]])
