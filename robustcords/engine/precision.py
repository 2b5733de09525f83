"""Numerical precision: float32, bfloat16, float16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from robustcords.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]
"""Of forward and backward passes: float32 throughout, or mixed with bfloat16 or float16."""

_LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}


def full_precision(logits: Tensor) -> Tensor:
    """Returns logits in float32, whatever precision the model ran in; float64 is kept."""
    return logits if logits.dtype == torch.float64 else logits.float()


def fastest(device: torch.device) -> Literal["bf16", "fp32"]:
    """Returns the precision of ``"auto"`` on a device: bf16 if it has instructions for it, else float32.

    A CPU without AVX512-BF16 or AMX emulates bf16 and is slower with it; so is a GPU older than Ampere.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if device.type == "cpu":
        capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16" if capable else "fp32"
    return "fp32"


def require(precision: str, device: torch.device, key: str) -> None:
    """Checks that a device can compute in a precision.

    Args:
        precision: as `Precision`.
        device: to compute on.
        key: of the recipe, for messages.

    Raises:
        UserError: float16 on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise UserError(f'{key} = "fp16" needs a GPU; on a CPU use "bf16" or "fp32"')


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Returns the autocast context of a precision on a device, which overrides an enclosing one."""
    return torch.autocast(device.type, dtype=_LOWER.get(precision), enabled=precision in _LOWER)


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Context of exact float32: no autocast, and no TF32 on a GPU."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
