"""Train and eval mode, and global random generators, set for a block of code and restored after it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustcords.engine.convolution import sound_convolutions
from robustcords.engine.precision import exact_float32
from robustcords.rng import derive

Model = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) in [0, 1] to logits (B, classes); usually a module."""


@contextmanager
def evaluation_mode(model: Model) -> Iterator[None]:
    """Puts every submodule into eval mode and afterwards back into the mode it had, each on its own.

    Attacks, selection and evaluation run models in such a block, so it has `sound_convolutions` too.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with sound_convolutions():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def modes_kept(model: object) -> Iterator[None]:
    """Gives every submodule back in the mode that it has now, each on its own; a model may be any function.

    Parts that are frozen on purpose stay so, which ``model.train()`` would not have them do.
    """
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Gives buffers, such as BatchNorm's statistics, back as they are now: the same tensors with the same values."""
    held = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffers, name, buffer, values in held:
                buffers[name] = buffer.copy_(values)


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into train mode, and gives its modes and buffers back as they were."""
    with modes_kept(model), buffers_kept(model):
        model.train()
        yield


@contextmanager
def without_parameter_gradients(model: Model) -> Iterator[None]:
    """Lets no parameter require a gradient for as long as the block lasts.

    Autograd skips the gradients that nobody asks for node by node, but a compiled model's backward pass is one node,
    which makes those of all parameters that require one.
    """
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def in_float32(model: Model, device: torch.device) -> Iterator[Model]:
    """Gives a model that computes in float32 for as long as the block lasts, whatever precision it is run in otherwise.

    Neither an autocast context around the block nor, on a GPU, TF32 has any effect in it. The model may have an
    attribute ``exact`` that says what to run; see `robustcords.engine.inference.Inference`.
    """
    exact = getattr(model, "exact", model)
    with exact_float32(device):
        yield exact


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds the global generators of Python, NumPy and torch, and afterwards gives them back as they were.

    Meanwhile ``np.random.seed()``, with which CORDS' ``RandomStrategy`` asks the operating system for a seed, does
    nothing.

    Args:
        seed: for all of them.
        device: as for `torch_seeded`.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch_seeded(derive(seed, "torch"), device), _no_seed_from_outside():
        random.seed(derive(seed, "python"))
        np.random.seed(derive(seed, "numpy") % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def torch_seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds torch's global generators, which dropout draws from, and afterwards gives them back as they were.

    Takes 13 microseconds on a CPU, where ``torch.manual_seed``, which gives nothing back, takes 250.

    Args:
        seed: what ``torch.manual_seed`` would be given.
        device: an accelerator whose generator is meant too; None and a CPU for the CPU's alone.
    """
    accelerators = [] if device is None or device.type == "cpu" else [device]
    with torch.random.fork_rng(accelerators, device_type=accelerators[0].type if accelerators else None):
        torch.default_generator.manual_seed(seed)
        for accelerator in accelerators:
            module = torch.get_device_module(accelerator)
            with module.device(accelerator):
                module.manual_seed(seed)
        yield


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
