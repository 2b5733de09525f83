"""Sees every convolution that reaches torch's operators, forward and backward."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten: Any = torch.ops.aten


class Watch(TorchDispatchMode):
    """Notes the geometry of each convolution and of each one's gradients.

    Attributes:
        seen: how many there were.
        unsound: those whose stride is larger than their kernel, or of which a tap meets nothing but padding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.unsound: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keeps torch from importing its compiler for this, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.convolution.default:
            x, weight, _, stride, padding, dilation, *_ = args
            self.note(x, weight, stride, padding, dilation)
        elif func is aten.convolution_backward.default:
            _, x, weight, _, stride, padding, dilation, *_ = args
            self.note(x, weight, stride, padding, dilation)
        return func(*args, **(kwargs or {}))

    def note(self, x: Tensor, weight: Tensor, *sides: Any) -> None:
        """Keeps a geometry that is not as it should be."""
        self.seen += 1
        if any(map(faulty, x.shape[2:], weight.shape[2:], *sides)):
            self.unsound.append(f"{tuple(x.shape)} by {tuple(weight.shape)}, stride, padding, dilation {sides}")


def faulty(size: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Returns whether a dimension is as in one of the geometries that torch may compute wrongly."""
    return stride > dilation * (kernel - 1) + 1 or live(size, kernel, stride, padding, dilation) < set(range(kernel))


def live(size: int, kernel: int, stride: int, padding: int, dilation: int) -> set[int]:
    """Returns the taps that meet a pixel, by trying every tap at every place of the kernel."""
    starts = range(-padding, size + padding - dilation * (kernel - 1), stride)
    return {tap for start, tap in product(starts, range(kernel)) if 0 <= start + tap * dilation < size}
