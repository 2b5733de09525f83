"""The precision that numbers are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(logits: Tensor) -> Tensor:
    """Returns logits in float32, whatever precision the model ran in; float64 stays what it is."""
    return logits if logits.dtype == torch.float64 else logits.float()
