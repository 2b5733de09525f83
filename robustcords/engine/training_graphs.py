"""A network's passes in training, recorded as CUDA graphs: forward in train mode, backward to the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from robustcords.engine.cuda_graphs import Passes, Recorder, recorder_for
from robustcords.engine.folding import is_known
from robustcords.engine.precision import full_precision
from robustcords.errors import UserError


class TrainingReplays(nn.Module):
    """Computes a network's train-mode logits, and through autograd the parameters' gradients, from recorded passes.

    The network itself runs whenever a pass is not the usual one of an update: without gradients, with a gradient for
    the images, with a part in eval mode, or with other tensors as parameters or buffers. Every pass of a step has
    recordings of its own, because the activations of all of them have to last until the step's backward passes;
    batches are not padded, as BatchNorm depends on all images. So the memory is that of the activations of a step, for
    each size of batch.

    Args:
        network: one that `replayable` accepts; shared, not copied.
        recorder: returns a new recorder, with memory of its own.
    """

    def __init__(self, network: nn.Module, recorder: Callable[[], Recorder]) -> None:
        super().__init__()
        self.network, self._recorder = network, recorder
        self._recorded: dict[object, _ParameterPasses] = {}
        self._turn = 0
        self._tensors = self._held()

    def begin(self) -> None:
        """Announces the first pass of a micro-batch: what the passes before have kept is not needed any more."""
        self._turn = 0

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, classes) of images (B, C, H, W).

        Raises:
            UserError: the GPU has no memory for a recording.
        """
        usual = torch.is_grad_enabled() and not x.requires_grad and self._held() == self._tensors
        if not usual or not all(module.training for module in self.network.modules()):
            return full_precision(self.network(x))
        passes = self._passes(x)
        self._turn += 1
        logits: Tensor = _Trained.apply(x, passes, *passes.parameters)  # type: ignore[no-untyped-call]
        return logits

    def _held(self) -> list[tuple[int, bool]]:
        """Returns where the network's parameters and buffers are, and whether they are trained."""
        tensors = (*self.network.parameters(), *self.network.buffers())
        return [(tensor.data_ptr(), tensor.requires_grad) for tensor in tensors]

    def _passes(self, x: Tensor) -> _ParameterPasses:
        """Returns the passes for this turn and shape of images, recorded at first use."""
        tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        kind = self._turn, x.shape, x.stride(), x.dtype, tf32, autocast
        if kind not in self._recorded:
            try:
                self._recorded[kind] = _ParameterPasses(self.network, x, self._recorder())
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"no GPU memory to record the update of {len(x)} images in; train.cuda_graphs = true records the "
                    "attacks alone"
                ) from error
        return self._recorded[kind]


def training_replays(network: nn.Module, device: torch.device) -> TrainingReplays | None:
    """Returns a network's recorded passes; None if the network or the device has none."""

    def recorder() -> Recorder:
        found = recorder_for(device)
        assert found is not None
        return found

    return TrainingReplays(network, recorder) if replayable(network) and recorder_for(device) else None


def replayable(network: nn.Module) -> bool:
    """Returns whether a network's train-mode passes can be recorded.

    Its code has to be known, draw no random numbers, and depend on the tensors of the step alone, which BatchNorm with
    a cumulative average (``momentum=None``) does not.
    """
    return (
        is_known(network)
        and network._compiled_call_impl is None
        and not any(isinstance(module, _DropoutNd) and module.p > 0 for module in network.modules())
        and not any(isinstance(module, _BatchNorm) and module.momentum is None for module in network.modules())
    )


class _ParameterPasses(Passes):
    """Passes of one turn and shape, backward to the parameters."""

    def __init__(self, network: nn.Module, x: Tensor, recorder: Recorder) -> None:
        self.turn = 0
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.x = x.detach().clone(memory_format=torch.preserve_format)
        buffers = [(buffer.data, buffer.clone()) for buffer in network.buffers()]
        super().__init__(
            lambda: full_precision(network(self.x)),
            lambda logits, by: torch.autograd.grad(logits, self.parameters, by, allow_unused=True),
            recorder,
        )
        # BatchNorm's statistics are to count this batch once. As `data`, because autograd would take it for a change
        # of what the pending backward pass of another turn depends on.
        for buffer, values in buffers:
            buffer.copy_(values)


class _Trained(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, passes: _ParameterPasses, *parameters: Tensor) -> Tensor:
        del parameters  # named so that autograd asks for their gradients
        passes.x.copy_(x)
        passes.forward()
        passes.turn += 1
        ctx.passes, ctx.turn = passes, passes.turn
        return passes.logits.clone()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, by_logits: Tensor) -> tuple[Tensor | None, ...]:
        passes = ctx.passes
        if ctx.turn != passes.turn:
            raise RuntimeError("a recorded pass was repeated, or differentiated, before this backward pass")
        passes.by_logits.copy_(by_logits)
        passes.backward()
        passes.turn += 1  # what the forward pass kept is used up
        places = [each for each in passes.gradients if each is not None]
        copies = [torch.empty_like(each) for each in places]
        torch._foreach_copy_(copies, places)  # one launch
        found = iter(copies)
        return None, None, *(None if each is None else next(found) for each in passes.gradients)
