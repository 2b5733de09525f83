"""A model as attacks, selection and validation run it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from robustcords.precision import full_precision

Autocast = Callable[[], AbstractContextManager[object]]
"""Makes a fresh mixed-precision context, such as ``accelerator.autocast``."""


class Inference(nn.Module):
    """Runs a model in the precision that it is trained in, and gives logits in float32.

    Args:
        model: shared, not copied.
        autocast: the context each forward runs in.
    """

    def __init__(self, model: nn.Module, autocast: Autocast = nullcontext) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, classes) float32 logits of images (B, C, H, W) in [0, 1]."""
        with self.autocast():
            return full_precision(self.model(x))
