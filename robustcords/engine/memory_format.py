"""The memory format of a model: channels_last or contiguous."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy

Layout = Literal["channels_last", "contiguous"]

MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def layout_of(model: nn.Module) -> Layout:
    """Returns the layout of a model's tensors; contiguous if their shapes fit both."""
    for tensor in model.parameters():
        if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
            return "channels_last"
    return "contiguous"


def own_memory(model: nn.Module) -> None:
    """Replaces expanded tensors of a model by copies with memory of their own.

    Expanded tensors cannot be written to, so no state could be loaded.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if not is_lazy(tensor) and tensor.layout == torch.strided and 0 in tensor.stride():
            tensor.data = tensor.data.contiguous()


def lay_out(model: nn.Module, device: torch.device, layout: str) -> nn.Module:
    """Moves a model to a device in place, and converts its four-dimensional tensors to a memory format."""
    own_memory(model.to(device))
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=MEMORY_FORMATS[layout])
    return model
