"""A model as attacks, selection and validation run it, and as the update does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustcords.engine.cuda_graphs import Replays, recorder_for
from robustcords.engine.folding import Folded, fold, settings_of
from robustcords.engine.modes import evaluation_mode, without_parameter_gradients
from robustcords.engine.precision import full_precision

Autocast = Callable[[], AbstractContextManager[object]]
"""Makes a fresh mixed-precision context, such as ``accelerator.autocast``."""


class Inference(nn.Module):
    """Runs a model in the precision of training, and returns logits in float32.

    Args:
        model: shared, not copied.
        autocast: makes the context of each forward pass.
        replay: whether it may replay recorded passes while `folded`, on a GPU.
    """

    def __init__(self, model: nn.Module, autocast: Autocast = nullcontext, *, replay: bool = True) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast
        self.replay = replay
        self._folded: Folded | None = None
        self._replays: Replays | None = None
        self._places: list[object] = []
        self._hooks: list[dict[int, Any]] = []
        self._read: object = None
        self._in_block = False
        self._shelves: list[dict[str, Any]] = []
        self._shared: list[Any] = []
        self._stamps: object = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, classes) float32 logits of images (B, C, H, W) in [0, 1]."""
        folded = self._folded if self._in_block and self._as_folded() and not self.model.training else None
        with self.autocast():
            if folded and self._replays and len(x) and not (any(self._hooks) or torch.is_inference_mode_enabled()):
                return self._replays(x)
            return full_precision((folded or self.model)(x))

    @property
    def exact(self) -> nn.Module:
        """What to run for float32 inside `exact_float32`: usually the model itself.

        A folded network has its weights in the lower precision, and a GPU's recordings keep theirs.
        """
        parameter = next(self.model.parameters(), None)
        plain = self._dtype() is not None or (parameter is not None and parameter.device.type != "cpu")
        return self.model if plain else self

    @contextmanager
    def under(self, autocast: Autocast) -> Iterator[Self]:
        """Context with another autocast; folded weights and recordings are shared."""
        previous, self.autocast = self.autocast, autocast
        try:
            yield self
        finally:
            self.autocast = previous

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Context in which the model runs folded in eval mode, and on a GPU from `Replays`.

        The folded network provides input gradients, as inside a call of an `Attack` or of
        `without_parameter_gradients`. The plain model runs for the rest of the block once a forward pass could need a
        parameter's gradient, or finds a parameter or buffer changed or replaced, as by ``torch.func.functional_call``:
        code that perturbs weights, such as AWP, gets all gradients and the logits of the current weights. Writing to
        ``.data`` goes undetected until a gradient is needed. A compiled model is left alone, as its compiler folds.
        Logits differ from the plain model's by rounding.
        """
        if self._in_block or self.model._compiled_call_impl is not None:
            yield
            return
        if self._read != (read := settings_of(self.model)):
            with evaluation_mode(self.model):
                self._folded = fold(self.model)
            self._read, self._places = read, []
        if self._folded:
            self._folded.refresh(self._dtype(), in_place=self._replays is not None)
            if self.replay:
                self._keep_replays(self._folded)
        self._in_block = True
        self._shelves = [
            shelf for module in self.model.modules() for shelf in (module._parameters, module._buffers, module._modules)
        ]
        self._shared = self._held()  # alive until the next block, so that nothing in their place has the same address
        self._stamps = _stamped(self._shared)
        try:
            yield
        finally:
            self._in_block = False

    def _as_folded(self) -> bool:
        """Returns whether the folded network still stands for the model."""
        if self._stamps is not None:
            held = self._held()
            asked = torch.is_grad_enabled() and any(isinstance(one, Tensor) and one.requires_grad for one in held)
            if asked or self._stamps != _stamped(held):
                self._stamps = None
        return self._stamps is not None

    def _held(self) -> list[Any]:
        """Returns the modules' current parameters, buffers and modules.

        Iterating over ``parameters()`` would take many times as long, and every forward pass needs them.
        """
        return [one for shelf in self._shelves for one in shelf.values()]

    def _keep_replays(self, folded: Folded) -> None:
        """Keeps the recordings if the network's tensors are still at the same addresses."""
        tensors, model = folded.tensors(), self.model
        places: list[object] = [(tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors]
        if self._replays:
            self._replays.renew()
        if places == self._places:
            return

        # It names no `self`: in a cycle the recordings' memory would be kept until Python looks for cycles.
        def network(x: Tensor) -> Tensor:
            with without_parameter_gradients(model):
                return full_precision(folded(x))

        recorder = recorder_for(tensors[0].device) if _keeps_images_apart(model) else None
        self._replays = Replays(network, recorder) if recorder else None
        self._places = places
        # Code that hooks run is Python's, which a replay would pass by.
        self._hooks = [
            hooks for module in model.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]

    def _dtype(self) -> torch.dtype | None:
        """Returns the type of convolutions under `autocast`; None if it leaves them alone."""
        parameter = next(self.model.parameters(), None)
        device = "cpu" if parameter is None else parameter.device.type
        with self.autocast():
            return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _stamped(held: list[Any]) -> object:
    """Returns a value that changes when an object is replaced, or a tensor is written to or moved."""
    return [
        (id(one), one.is_inference() or one._version, one.data_ptr()) if isinstance(one, Tensor) else id(one)
        for one in held
    ]


def _keeps_images_apart(model: nn.Module) -> bool:
    """Returns whether eval-mode logits do not depend on the other images: no batch statistics."""
    return all(module.running_var is not None for module in model.modules() if isinstance(module, _BatchNorm))


def folded(model: object) -> AbstractContextManager[None]:
    """Returns `Inference.folded` of an `Inference`, else a context that does nothing."""
    return model.folded() if isinstance(model, Inference) else nullcontext()
