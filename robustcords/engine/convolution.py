"""Two-dimensional convolutions on a CPU, in forms that the library behind torch computes right.

It does not where the stride is larger than the kernel (1x1 with stride 2): with few input channels the gradient of the
weight of channels_last images writes past a buffer (https://github.com/uxlfoundation/oneDNN/issues/6035), and with AMX
the result can be wrong (https://github.com/uxlfoundation/oneDNN/pull/5494). Nor where taps of the kernel meet nothing
but padding, as eight of nine do on an image of one pixel: in bfloat16 the gradient of their weights can be whatever was
in memory. So here

- pixels that no tap reads are left out first, after which the stride is no larger than the kernel;
- taps that meet nothing but padding are left out, and what the others need of the padding becomes part of the image.

This depends on the geometry alone, and not on where it has been seen to fail. It is exact: autograd gives what is left
out the zeros that are its gradients. ``benchmarks/cpu_convolutions.py`` tries geometries on any machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.jit._builtins import _register_builtin
from torch.nn import functional as F
from torch.overrides import has_torch_function_variadic


class Cut(NamedTuple):
    """How one dimension of a convolution is computed.

    Attributes:
        size: pixels of the image.
        kept: slice of the kernel's taps that are kept, from the first to the last that meets a pixel.
        reach: pixels from the first kept tap to the last, inclusive.
        stride: of the original convolution.
        left: zeros to pad in front of the image; if negative, pixels to crop.
        right: the same behind it.
    """

    size: int
    kept: slice
    reach: int
    stride: int
    left: int
    right: int


def live_taps(size: int, kernel: int, stride: int, left: int, dilation: int, outputs: int) -> list[int]:
    """Returns the taps of a kernel that meet at least one pixel of the image, in one dimension.

    Args:
        size: pixels of the image.
        kernel: number of taps.
        stride: pixels from one position of the kernel to the next.
        left: padding in front of the image.
        dilation: pixels from one tap to the next.
        outputs: number of positions of the kernel.
    """
    live = []
    for tap in range(kernel):
        start = tap * dilation - left
        place = max(0, -(start // stride))  # the first one at which the tap is not in front of the image
        if place < outputs and start + place * stride < size:
            live.append(tap)
    return live


def _cut(size: int, kernel: int, stride: int, left: int, dilation: int, outputs: int) -> tuple[Cut, bool]:
    """Returns how one dimension is computed, and whether torch's operator must not be given it; see `live_taps`."""
    live = live_taps(size, kernel, stride, left, dilation, outputs)
    if not live:  # one tap, on zeros in the place of the image
        return Cut(size, slice(1), 1, stride, (outputs - 1) * stride + 1, -size), True
    first, last = live[0], live[-1]
    reach = dilation * (last - first) + 1
    left -= first * dilation
    right = (outputs - 1) * stride + reach - size - left
    if -stride < right < 0:
        right = 0  # what no place reaches can stay
    return Cut(size, slice(first, last + 1), reach, stride, left, right), len(live) < kernel or stride > reach


def plan(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int | tuple[int, ...],
    padding: int | str | tuple[int, ...],
    dilation: int | tuple[int, ...],
) -> tuple[Cut, ...] | None:
    """Returns how each dimension of a convolution is computed; None if torch's operator is right, or refuses it.

    Args:
        size: height and width of the image.
        kernel: height and width.
        stride: as torch takes it.
        padding: as torch takes it.
        dilation: as torch takes it.
    """
    strides, dilations = _pair(stride), _pair(dilation)
    if not strides or not dilations or min(*size, *kernel, *strides, *dilations) < 1:
        return None
    reaches = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    if padding == "same":
        paddings = [((reach - 1) // 2, reach - 1 - (reach - 1) // 2) for reach in reaches]
    else:
        paddings = [(pixels, pixels) for pixels in _pair(0 if padding == "valid" else padding)]
    if not paddings or min(map(min, paddings)) < 0:
        return None
    sides = zip(size, paddings, reaches, strides, strict=True)
    places = [(pixels + sum(pads) - reach) // step + 1 for pixels, pads, reach, step in sides]
    if min(places) < 1:
        return None
    left = [pads[0] for pads in paddings]
    cuts, needed = zip(*map(_cut, size, kernel, strides, left, dilations, places), strict=True)
    return cuts if any(needed) else None


_remembered_plan = cache(plan)


def _plan(*geometry: Any) -> tuple[Cut, ...] | None:
    """Returns the `plan`; without the cache under a compiler, which would warn of it."""
    return plan(*geometry) if torch.compiler.is_compiling() else _remembered_plan(*geometry)


def _pair(option: Any) -> tuple[int, ...]:
    """Returns an option as two numbers, or none if torch refuses it."""
    values = option if isinstance(option, tuple) else (option,)
    values = values * 2 if len(values) == 1 else values
    return values if len(values) == 2 and all(isinstance(value, int) for value in values) else ()


def _hashable(option: Any) -> Any:
    return tuple(option) if isinstance(option, list) else option


def _applies(x: Any, weight: Any) -> bool:
    """Returns whether a call is a convolution of real numbers on a CPU; torch handles anything else."""
    if has_torch_function_variadic(x, weight) or not (isinstance(x, Tensor) and isinstance(weight, Tensor)):
        return False
    return weight.ndim == 4 and x.ndim in {3, 4} and x.device.type == "cpu" and x.is_floating_point()


def _size(tensor: Tensor) -> tuple[int, ...]:
    """Returns height and width as numbers instead of a compiler's symbols."""
    return tuple(map(int, tensor.shape[-2:]))


def _layout(tensor: Tensor) -> torch.memory_format:
    last = torch.channels_last
    return last if tensor.ndim == 4 and tensor.is_contiguous(memory_format=last) else torch.contiguous_format


_torch_conv2d: Callable[..., Tensor] = torch.conv2d


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Returns the result of `torch.conv2d`, called with an equivalent geometry that it computes right."""
    cuts = None
    if _applies(input, weight):
        cuts = _plan(_size(input), _size(weight), *map(_hashable, (stride, padding, dilation)))
    if cuts is None:
        return _torch_conv2d(input, weight, bias, stride, padding, dilation, groups)
    pads = [pixels for cut in reversed(cuts) for pixels in (cut.left, cut.right)]
    x = F.pad(input, pads) if any(pads) else input
    if any(cut.stride > cut.reach == 1 for cut in cuts):
        # Means of one pixel are a strided slice, but their gradient keeps the layout, in a third of the time.
        x = F.avg_pool2d(x, 1, tuple(cut.stride if cut.reach == 1 else 1 for cut in cuts))
    for axis, cut in enumerate(cuts, start=-2):
        if cut.stride > cut.reach > 1:
            x = x.unfold(axis, cut.reach, cut.stride).movedim(-1, axis).flatten(axis - 1, axis)
            # Else a dimension of one keeps a stride of no memory format, which torch's gradients believe.
            x = x.clone(memory_format=_layout(input))
    height, width = cuts
    strides = tuple(min(cut.stride, cut.reach) for cut in cuts)
    return _torch_conv2d(x, weight[..., height.kept, width.kept], bias, strides, 0, dilation, groups)


# A network that is scripted while `conv2d` is in place gets torch's operator, instead of a failure to compile this one.
_register_builtin(conv2d, "aten::conv2d")

_LOCK = threading.Lock()
_blocks = 0


@contextmanager
def sound_convolutions() -> Iterator[None]:
    """Context in which torch's layers, ``F.conv2d`` and ``torch.conv2d`` use the `conv2d` of this module.

    It applies to the whole process, and changes results by rounding only. A function that other code has put in torch's
    place stays. Not covered are names imported by ``from torch.nn.functional import conv2d``, scripted networks, and
    convolutions of one or three dimensions and transposed ones, which image classifiers do not use.
    """
    _count_blocks(1)
    try:
        yield
    finally:
        _count_blocks(-1)


def _count_blocks(change: int) -> None:
    """Replaces torch's function for the first block, and restores it after the last."""
    global _blocks
    with _LOCK:
        before, _blocks = _blocks, _blocks + change
        if bool(before) == bool(_blocks):
            return
        old, new = (_torch_conv2d, conv2d) if _blocks else (conv2d, _torch_conv2d)
        for module in (torch, F):
            if vars(module)["conv2d"] is old:
                vars(module)["conv2d"] = new
