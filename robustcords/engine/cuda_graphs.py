"""A network's passes on a GPU, recorded once as CUDA graphs and replayed: two launches in place of hundreds.

A GPU computes a batch of small images faster than Python asks for it, and so waits for most of an attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustcords.errors import UserError

Network = Callable[[Tensor], Tensor]
"""Images (B, C, H, W) to float32 logits (B, classes), each image's independent of the others'."""

Work = Callable[[], Any]
"""Makes a tensor, or a tuple of tensors without a graph, from tensors that stay where they are."""

_STEP = 32
"""Batches are filled up to a multiple of this, so that few sizes are recorded."""

_WARM_UP = 2
"""Passes before the recorded ones, in which libraries load their kernels and make their plans."""


class Recorder(Protocol):
    """Records work as a replay."""

    def alongside(self) -> AbstractContextManager[object]:
        """Context for warm-up work, which is not recorded."""

    def record(self, work: Work) -> tuple[Callable[[], object], Any]:
        """Returns a function that replays the work, and the tensors that it writes to, without a graph.

        They are undefined before the first replay.
        """


class Graphs:
    """Records CUDA graphs.

    They share one memory pool, so a backward pass may be replayed only directly after its own forward pass.

    Args:
        device: where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def alongside(self) -> Iterator[None]:
        """Context on the graphs' stream, as a backward pass ends on the stream where its leaf was first used."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(self, work: Work) -> tuple[Callable[[], object], Any]:
        """Returns the replay of a graph, and its output tensors."""
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            result = work()
        return graph.replay, result.detach() if isinstance(result, Tensor) else result


def recorder_for(device: torch.device) -> Recorder | None:
    """Returns the recorder of a device; None if there is none."""
    return Graphs(device) if device.type == "cuda" else None


class Replays:
    """Computes a network's logits, and through autograd their input gradients, from recorded passes.

    They use the network's current parameters and buffers, which must stay at the same addresses. Parameters get no
    gradients, and gradients cannot be differentiated again. Batches are padded, for which a GPU may choose other
    kernels: results differ from the network's own by rounding.

    Args:
        network: must do the same in each call: no random numbers, modes or Python control flow. Only the images may
            require a gradient.
        recorder: see `recorder_for`.
    """

    def __init__(self, network: Network, recorder: Recorder) -> None:
        self._network, self._recorder = network, recorder
        self._recorded: dict[object, _ImagePasses] = {}
        self._turn = self._weights = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Returns logits (B, classes) of images (B, C, H, W).

        Raises:
            UserError: the GPU has no memory for a recording.
        """
        passes = self._passes(x)
        if torch.is_grad_enabled() and x.requires_grad:
            logits: Tensor = _Replayed.apply(x, self, passes)  # type: ignore[no-untyped-call]
            return logits
        return self.forward(passes, x)[0]

    def renew(self) -> None:
        """Announces that the weights may have changed: earlier logits have no gradients any more."""
        self._weights += 1

    def forward(self, passes: _ImagePasses, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Returns logits without a graph, and the identity of this pass for `backward`."""
        passes.x[: len(x)].copy_(x)
        passes.forward()
        self._turn += 1
        return passes.logits[: len(x)].clone(), (self._weights, self._turn)

    def backward(self, passes: _ImagePasses, x: Tensor, by_logits: Tensor, at: tuple[int, int]) -> Tensor:
        """Returns the gradient with respect to the images (B, C, H, W), given that of the logits (B, classes).

        Args:
            passes: the same as for `forward`.
            x: the same as for `forward`.
            by_logits: gradient with respect to the logits.
            at: identity from `forward`. All passes share their memory, so this one is repeated if there have been
                others since.

        Raises:
            RuntimeError: `renew` was called in between.
        """
        weights, turn = at
        if weights != self._weights:
            raise RuntimeError("the weights have changed between the forward pass and its backward pass")
        if turn != self._turn:
            self.forward(passes, x)
        passes.by_logits[: len(x)].copy_(by_logits)
        passes.backward()
        self._turn += 1  # what the forward pass kept is used up
        gradient: Tensor = passes.gradients[: len(x)]
        return gradient.clone()

    def _passes(self, x: Tensor) -> _ImagePasses:
        """Returns the passes for this shape of images, recorded at first use."""
        size = -(-len(x) // _STEP) * _STEP
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        # TF32 is decided on when a kernel is recorded, not when it is replayed.
        tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        kind = size, x.shape[1:], x.dtype, layout, tf32
        if kind not in self._recorded:
            images = x.new_zeros((size, *x.shape[1:])).contiguous(memory_format=layout)
            try:
                self._recorded[kind] = _ImagePasses(self._network, images, self._recorder)
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"not enough GPU memory to record passes of {size} images; set train.cuda_graphs = false"
                ) from error
        return self._recorded[kind]


class Passes:
    """A forward pass and its backward pass, recorded, and the tensors that they write to and read.

    Args:
        forward: computes logits (B, classes), with a graph, from tensors that stay where they are.
        differentiate: returns gradients, given these logits and the gradient with respect to them.
        recorder: see `recorder_for`.
    """

    def __init__(
        self, forward: Callable[[], Tensor], differentiate: Callable[[Tensor, Tensor], Any], recorder: Recorder
    ) -> None:
        with_graph = by_logits = torch.empty(0)  # until the first passes

        def logits() -> Tensor:
            nonlocal with_graph
            with torch.enable_grad(), _autocast_anew():
                with_graph = forward()
            return with_graph

        def gradients() -> Any:
            return differentiate(with_graph, by_logits)

        with recorder.alongside():
            for _ in range(_WARM_UP):
                by_logits = torch.zeros_like(logits())
                gradients()
        self.by_logits = by_logits
        self.logits: Tensor
        self.forward, self.logits = recorder.record(logits)
        self.backward, self.gradients = recorder.record(gradients)


class _ImagePasses(Passes):
    """Passes for one batch size, backward to the images."""

    def __init__(self, network: Network, x: Tensor, recorder: Recorder) -> None:
        self.x = x
        leaf = x.detach().requires_grad_()
        super().__init__(lambda: network(leaf), lambda logits, by: torch.autograd.grad(logits, leaf, by)[0], recorder)


@contextmanager
def _autocast_anew() -> Iterator[None]:
    """Context in which autocast converts images and weights in each pass instead of caching them."""
    keeps = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(keeps)


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, replays: Replays, passes: _ImagePasses) -> Tensor:
        logits, ctx.at = replays.forward(passes, x)
        ctx.replays, ctx.passes = replays, passes
        ctx.save_for_backward(x)
        return logits

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, by_logits: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return ctx.replays.backward(ctx.passes, x, by_logits, ctx.at), None, None
