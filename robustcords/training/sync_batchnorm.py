"""BatchNorm with statistics over all processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from robustcords.runtime import collectives

_ARGUMENTS = inspect.signature(F.batch_norm)


class SyncBatchNorm(TorchFunctionMode):
    """Is a block in which every BatchNorm in train mode normalises by the images of all processes together.

    The model stays as it is: it is ``torch.nn.functional.batch_norm`` that does another thing in the block, whichever
    module calls it, so that state dicts, folding and attacks, which run in eval mode, know nothing of it. All processes
    have to pass as many BatchNorms, forward and backward. ``torch.nn.SyncBatchNorm`` is for GPUs alone and cannot be
    differentiated twice; this is written in operations that run, and have derivatives of any order, everywhere.

    Example:
        >>> with SyncBatchNorm():
        ...     logits = model(x)
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Does what torch does, but for BatchNorm in train mode."""
        del types
        if func is F.batch_norm:
            given = _ARGUMENTS.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            if given.arguments.pop("training"):
                return _normalised(*given.arguments.values())
        return func(*args, **(kwargs or {}))


def _normalised(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """Returns what ``batch_norm`` does for this process's part (B, C, ...) of a batch, and updates the statistics."""
    values = x if x.dtype == torch.float64 else x.float()
    mean, var, count = _statistics(values)
    with torch.no_grad():
        unbiased = var * (count / (count - 1).clamp(min=1))
        for running, current in ((running_mean, mean), (running_var, unbiased)):
            if running is not None:
                running.mul_(1 - momentum).add_(momentum * current)
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    by_channel = (-1, *[1] * (x.ndim - 2))
    # One operation, which keeps no more for its gradient than the statistics do: the values.
    return torch.addcmul(shift.to(values).view(by_channel), values, scale.to(values).view(by_channel)).to(x.dtype)


def _statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean and biased variance (C,) over all processes, and how many values a channel has, all float64.

    Args:
        values: (B, C, ...) of this process, at least one; processes may have different numbers.
    """
    var, mean = torch.var_mean(values, [0, *range(2, values.ndim)], correction=0)
    var, mean, count = var.double(), mean.double(), values.numel() // len(mean)
    # Sums of squares cancel in float32, and C numbers cost nothing in float64.
    sums = torch.cat([mean * count, (var + mean.square()) * count, mean.new_tensor([count])])
    first, second, total = collectives.differentiable_sum(sums).split([len(mean), len(mean), 1])
    mean = first / total
    return mean, (second / total - mean.square()).clamp(min=0), total
