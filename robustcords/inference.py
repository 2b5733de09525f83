"""A model as attacks, selection and validation run it, and as the update does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from robustcords.attacks.base import evaluation_mode
from robustcords.folding import Folded, fold, settings_of
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
        self._folded: Folded | None = None
        self._read: object = None
        self._frozen = False

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, classes) float32 logits of images (B, C, H, W) in [0, 1]."""
        network = self._folded if self._folded and self._frozen and not self.model.training else self.model
        with self.autocast():
            return full_precision(network(x))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Promises that nothing in the model changes as long as the block lasts: in eval mode it then runs folded.

        A compiled model stays as it is, as its compiler sees to that. Logits differ from the plain model's by rounding.
        """
        if self._frozen or self.model._compiled_call_impl is not None:
            yield
            return
        if self._read != (read := settings_of(self.model)):
            with evaluation_mode(self.model):
                self._folded = fold(self.model)
            self._read = read
        if self._folded:
            self._folded.refresh(self._dtype())
        self._frozen = True
        try:
            yield
        finally:
            self._frozen = False

    def _dtype(self) -> torch.dtype | None:
        """Returns what convolutions run in under `autocast`; None where it leaves them alone."""
        parameter = next(self.model.parameters(), None)
        device = "cpu" if parameter is None else parameter.device.type
        with self.autocast():
            return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def frozen(model: object) -> AbstractContextManager[None]:
    """Returns `Inference.frozen` of a model where it has one, else a context that does nothing."""
    return model.frozen() if isinstance(model, Inference) else nullcontext()


class Passes(nn.Module):
    """Runs all passes of a step in one forward, which is what distributed wrappers expect of a step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Returns the logits of each input; every pass is a forward of its own, with its own BatchNorm statistics."""
        return [self.model(x) for x in inputs]
