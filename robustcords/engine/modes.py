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
    """Context with every submodule in eval mode; restores each one's mode on exit.

    Attacks, selection and evaluation run models in it, so it enters `sound_convolutions` too.
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
    """Context that restores every submodule's mode on exit; a model may be any function.

    Unlike ``model.train()`` it leaves parts in eval mode that were so on purpose.
    """
    modes = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Context that restores buffers, such as BatchNorm's statistics, on exit: the same tensors with the same values."""
    saved = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffers, name, buffer, values in saved:
                buffers[name] = buffer.copy_(values)


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Context with the model in train mode; restores modes and buffers on exit."""
    with modes_kept(model), buffers_kept(model):
        model.train()
        yield


@contextmanager
def without_parameter_gradients(model: Model) -> Iterator[None]:
    """Context in which no parameter requires a gradient.

    Autograd skips unneeded gradients node by node, but a compiled model's backward pass is a single node, which
    computes those of all parameters that require one.
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
    """Context that yields a model which computes in float32, whatever its usual precision.

    Neither an enclosing autocast context nor, on a GPU, TF32 has an effect in it. A model may have an attribute
    ``exact`` to run instead; see `robustcords.engine.inference.Inference`.
    """
    exact = getattr(model, "exact", model)
    with exact_float32(device):
        yield exact


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Context with the global generators of Python, NumPy and torch seeded; restores their states on exit.

    In it ``np.random.seed()`` without a seed, with which CORDS' ``RandomStrategy`` draws one from the operating system,
    does nothing.

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
    """Context with torch's global generators, which dropout uses, seeded; restores their states on exit.

    Takes 13 microseconds on a CPU, where ``torch.manual_seed`` alone takes 250.

    Args:
        seed: what ``torch.manual_seed`` would be given.
        device: an accelerator whose generator is seeded too; None or a CPU for the CPU's only.
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
