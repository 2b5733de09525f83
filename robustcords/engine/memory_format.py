"""The memory format of a model: channels_last or contiguous."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn.parameter import is_lazy

Layout = Literal["channels_last", "contiguous"]

MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def layout_of(model: nn.Module) -> Layout:
    """Returns the layout that a model's tensors have, contiguous where their shapes leave it open."""
    for tensor in model.parameters():
        if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
            return "channels_last"
    return "contiguous"


def own_memory(model: nn.Module) -> None:
    """Gives each number of a model's tensors a place of its own, which those that ``expand`` makes lack.

    Nothing can be written to such a tensor, not even what it holds already, so that no state could be loaded.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if not is_lazy(tensor) and tensor.layout == torch.strided and 0 in tensor.stride():
            tensor.data = tensor.data.contiguous()


def lay_out(model: nn.Module, device: torch.device, layout: str) -> nn.Module:
    """Moves a model to a device, in place, and gives its tensors of four dimensions a layout; others have one only."""
    own_memory(model.to(device))
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=MEMORY_FORMATS[layout])
    return model
