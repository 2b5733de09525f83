"""Setup of Accelerate: processes, device and precision."""

from __future__ import annotations

import atexit
import os
import shutil
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from robustcords.engine.allocator import keep_freed_memory
from robustcords.engine.precision import fastest, require
from robustcords.errors import UserError
from robustcords.runtime import collectives
from robustcords.runtime.watchdog import meeting, name_interface

_WAIT = timedelta(hours=6)
"""How long one process may wait for another that lives: for a download, or for an attack on its last examples."""

_DISTRIBUTED = DistributedDataParallelKwargs(find_unused_parameters=True)
"""A step need not use every parameter. Which ones it does is looked up in its graph, but not in those of attacks."""


def start(precision: str, accumulation: int = 1, trackers: Sequence[str] = ()) -> Accelerator:
    """Returns an accelerator with this precision and accumulation, which override the launcher's.

    On a CPU the process keeps freed memory from here on; see `robustcords.engine.allocator`.

    Args:
        precision: ``"fp32"``, ``"bf16"``, ``"fp16"``, or ``"auto"`` for the fastest stable one on the device.
        accumulation: micro-batches per optimizer step.
        trackers: names of Accelerate's trackers.

    Raises:
        UserError: the precision needs other hardware, or a tracker's package is not installed.
        RunError: the processes cannot connect.
    """
    available = {tracker.value for tracker in get_available_trackers()}
    for tracker in trackers:
        if tracker not in available:
            raise UserError(f"logging.trackers: {tracker!r} needs the package of that name, which is not installed")
    # Accelerate keeps the first Accelerator's precision for the whole process; a second run has its own.
    AcceleratorState._reset_state(reset_partial_state=False)
    # Sums over processes and the selection's arithmetic are in float64, which Apple's GPUs do not have. Where there is
    # no GPU Accelerate needs this: else it takes every process that torchrun has started for the only one.
    on_cpu = torch.backends.mps.is_available() or not torch.accelerator.is_available()
    device = _meet(on_cpu)
    if collectives.world_size() > 1:
        atexit.unregister(collectives.release)
        atexit.register(collectives.release)
    if device.type == "cpu":
        keep_freed_memory()
    AcceleratorState._reset_state(reset_partial_state=False)
    precision = fastest(device) if precision == "auto" else precision
    require(precision, device, "train.precision")
    return Accelerator(
        cpu=on_cpu,
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=accumulation,
        log_with=list(trackers) or None,
        kwargs_handlers=[_DISTRIBUTED],
        # Trackers with files get the run's directory when there is one; Accelerate asks for a place at once.
        project_dir=Path("runs"),
    )


def _meet(on_cpu: bool) -> torch.device:
    """Connects this process to all others that its launcher has started; returns the device.

    Raises:
        UserError: Accelerate takes this process for the only one.
        RunError: the processes cannot connect.
    """
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if expected > 1:
        name_interface()
    with meeting(), warnings.catch_warnings():
        # How many threads it has chosen is in environment.json.
        warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")
        accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=_WAIT)])
    if accelerator.num_processes < expected:
        raise UserError(
            f"WORLD_SIZE = {expected}, but this process would work alone; on GPUs each needs LOCAL_RANK too, which "
            "accelerate launch and torchrun set"
        )
    device: torch.device = accelerator.device
    return device


def compile_model(model: nn.Module) -> None:
    """Compiles a model in place, so that its state dict keeps its keys.

    Raises:
        UserError: ``torch.compile`` finds no compiler.
    """
    if not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise UserError("train.compile = true needs a C++ compiler and found none; install one or set it to false")
    model.compile()
