"""A model as attacks, selection and validation run it, and as the update does."""

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


class Passes(nn.Module):
    """Runs all passes of a step in one forward, which is what distributed wrappers expect of a step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Returns the logits of each input; every pass is a forward of its own, with its own BatchNorm statistics."""
        return [self.model(x) for x in inputs]
