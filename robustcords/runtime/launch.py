"""Several processes on CPUs under ``accelerate launch --cpu --num_processes N``.

Accelerate 1.15 hands N on to mpirun alone; without it, it starts one process and says nothing. Then torchrun, which it
uses for GPUs, is started here in its place.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise

_PR_SET_PDEATHSIG = 1  # of prctl(2)

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def rank(environment: Mapping[str, str]) -> int:
    """Returns this process's rank from its launcher's environment variables, without importing torch."""
    return next((int(environment[name]) for name in _RANKS if environment.get(name, "").isdecimal()), 0)


def left_out(launcher: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Returns torchrun's options for processes that ``accelerate launch`` was asked for but did not start.

    Args:
        launcher: the command line of the process that started this one.
        environment: of this process.

    Returns:
        The options; none if Accelerate started all processes, or was not the launcher.
    """
    alone = not any(name in environment for name in _RANKS)
    if not alone or environment.get("ACCELERATE_USE_CPU", "").lower() != "true":
        return []
    words = [
        part.replace("-", "_") if part.startswith("--") else part for word in launcher for part in word.split("=", 1)
    ]
    options = {name.lstrip("_"): value for name, value in pairwise(words) if name.startswith("__")}
    number, machines = _number(options, "num_processes", 1), _number(options, "num_machines", 1)
    if number < 2:
        return []
    each = ["--nproc_per_node", str(max(1, number // machines))]
    if machines < 2:
        return ["--standalone", *each]
    address, port = options.get("main_process_ip", "127.0.0.1"), _number(options, "main_process_port", 29500)
    place = ["--node_rank", str(_number(options, "machine_rank", 0)), "--master_addr", address]
    return ["--nnodes", str(machines), *each, *place, "--master_port", str(port)]


def _number(options: Mapping[str, str], name: str, default: int) -> int:
    value = options.get(name, "")
    return int(value) if value.isdecimal() else default


def _stop_with_parent() -> None:
    """On Linux, has this process, also after an exec, receive SIGTERM when its parent ends.

    ``accelerate launch`` ends on a scheduler's SIGTERM without forwarding it.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def spread(target: Sequence[str]) -> None:
    """Replaces this process by torchrun if `left_out` returns options for it; else returns.

    Args:
        target: what torchrun starts: a script, or ``"-m"`` and a module, followed by this process's arguments.
    """
    if "ACCELERATE_USE_CPU" not in os.environ:
        return
    import psutil

    parent = psutil.Process().parent()
    launcher = parent.cmdline() if parent else []
    if any("accelerate" in word for word in launcher[:3]):
        _stop_with_parent()
    if options := left_out(launcher, os.environ):
        torchrun = [sys.executable, "-m", "torch.distributed.run", *options]
        os.execv(sys.executable, [*torchrun, *target, *sys.argv[1:]])
