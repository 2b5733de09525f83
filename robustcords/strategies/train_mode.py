"""Running a model in train mode, and what draws from global generators, without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from robustcords.rng import derive


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds the global generators of Python, NumPy and torch, and afterwards gives them back as they were.

    Meanwhile ``np.random.seed()``, with which CORDS' ``RandomStrategy`` asks the operating system for a seed, does
    nothing.

    Args:
        seed: for all of them.
        device: a GPU whose generator dropout draws from; None and a CPU for torch's CPU generator alone.
    """
    python, numpy = random.getstate(), np.random.get_state()
    on_gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []), _no_seed_from_outside():
        random.seed(derive(seed, "python"))
        np.random.seed(derive(seed, "numpy") % 2**32)
        torch.default_generator.manual_seed(derive(seed, "torch"))
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(derive(seed, "torch"))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _no_seed_from_outside() -> Iterator[None]:
    reseed = np.random.seed

    def keep(seed: Any = None) -> None:
        if seed is not None:
            reseed(seed)

    np.random.seed = keep  # type: ignore[assignment]
    try:
        yield
    finally:
        np.random.seed = reseed


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into train mode, and gives its modes and buffers (BatchNorm's statistics) back as they were."""
    modules = list(model.modules())
    modes = [module.training for module in modules]
    held = [
        (module._buffers, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    model.train()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        with torch.no_grad():
            for buffers, name, buffer, value in held:
                buffers[name] = buffer.copy_(value)
