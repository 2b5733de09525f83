"""A network with its BatchNorms folded into the preceding convolutions, for fixed weights.

In eval mode a BatchNorm behind a convolution is an affine map per channel, so ``bn(conv(x))`` is one convolution with
other weights. An attack takes many passes at the same weights; without the BatchNorms, and with activations that
overwrite what nothing else reads, each of them moves less memory.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from robustcords.engine.convolution import conv2d

KNOWN = ("torch.nn.modules.", "robustcords.models.", "torchvision.models.")
"""Where the code of a network has to come from for it to be folded.

A trace passes by much that other code may do, without failing: gradients of its own, type checks, side effects, values
that change outside parameters and buffers.
"""

_READ = {bool, int, float, str, tuple}
_RELUS = {F.relu, torch.relu}
_ADDITIONS = {operator.add, torch.add}


class Folded:
    """Computes a network's logits from folded weights.

    Args:
        graph: the network as rewritten by `fold`, with placeholders for folded weights.
        pairs: the convolution and BatchNorm of each placeholder.
    """

    def __init__(self, graph: fx.GraphModule, pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]]) -> None:
        self._graph, self._pairs = graph, pairs

    def refresh(self, dtype: torch.dtype | None, *, in_place: bool) -> None:
        """Folds the current weights.

        Args:
            dtype: of the convolutions, so that no pass has to convert them; None keeps theirs.
            in_place: overwrite the existing folded weights if shapes and types allow.
        """
        with torch.no_grad():
            for number, (convolution, norm) in enumerate(self._pairs):
                assert norm.running_mean is not None and norm.running_var is not None  # `_foldable` has seen to it
                fused = fuse_conv_bn_weights(
                    convolution.weight,
                    convolution.bias,
                    norm.running_mean,
                    norm.running_var,
                    norm.eps,
                    norm.weight,
                    norm.bias,
                )
                layout = torch.channels_last if _channels_last(convolution.weight) else torch.contiguous_format
                weight, bias = (values.detach().to(dtype) for values in fused)
                self._put(f"folded_weight_{number}", weight.contiguous(memory_format=layout), in_place)
                self._put(f"folded_bias_{number}", bias, in_place)

    def tensors(self) -> list[Tensor]:
        """Returns all tensors that a call reads."""
        return [*self._graph.parameters(), *self._graph.buffers()]

    def _put(self, name: str, values: Tensor, in_place: bool) -> None:
        place: Tensor = getattr(self._graph, name)
        kind = values.shape, values.stride(), values.dtype, values.device
        if in_place and kind == (place.shape, place.stride(), place.dtype, place.device) and not place.is_inference():
            place.copy_(values)
        else:
            setattr(self._graph, name, values)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns (B, classes) eval-mode logits of images (B, C, H, W), with the weights of the last `refresh`."""
        logits: Tensor = self._graph(x)
        return logits


def fold(model: nn.Module) -> Folded | None:
    """Returns a folded view of a network; None if its code is not `KNOWN`, or there is nothing to fold.

    Args:
        model: in eval mode; its parameters and buffers are shared.
    """
    if not is_known(model):
        return None
    try:
        return _folded(fx.symbolic_trace(model))
    except Exception:  # whatever the code makes of being traced, it can still be run as it is
        return None


def is_known(model: nn.Module) -> bool:
    """Returns whether all of a network's code is `KNOWN`, and it has no hooks."""
    return not any(_hooked(module) or not type(module).__module__.startswith(KNOWN) for module in model.modules())


def _folded(graph: fx.GraphModule) -> Folded | None:
    modules = dict(graph.named_modules())
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    for node in list(graph.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        convolution, norm = modules[str(before.target)], modules[str(node.target)]
        if _foldable(convolution, norm):
            _replace(graph, node, before, convolution, len(pairs))
            pairs.append((convolution, norm))
    if not pairs:
        return None
    _overwrite(graph.graph, modules)
    graph.recompile()
    return Folded(graph, pairs)


def settings_of(model: nn.Module) -> object:
    """Returns a model's settings; after a change it has to be folded again.

    These are its modules, and their numbers, switches and names, except for train or eval mode.
    """
    return [
        (
            id(module),
            _hooked(module),
            {key: value for key, value in vars(module).items() if key != "training" and type(value) in _READ},
        )
        for module in model.modules()
    ]


def _hooked(module: nn.Module) -> bool:
    """Returns whether a module has hooks or an overridden call, which a trace would miss."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _foldable(convolution: nn.Module, norm: nn.Module) -> bool:
    plain = type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d
    return plain and convolution.padding_mode == "zeros" and norm.running_var is not None


def _replace(graph: fx.GraphModule, norm: fx.Node, node: fx.Node, convolution: Any, number: int) -> None:
    """Replaces two nodes by one convolution with folded weights."""
    for name in ("weight", "bias"):
        graph.register_buffer(f"folded_{name}_{number}", torch.empty(0), persistent=False)
    with graph.graph.inserting_before(norm):
        weight, bias = (graph.graph.get_attr(f"folded_{name}_{number}") for name in ("weight", "bias"))
        options = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
        folded = graph.graph.call_function(conv2d, (node.args[0], weight, bias, *options))
    norm.replace_all_uses_with(folded)
    graph.graph.erase_node(norm)
    graph.graph.erase_node(node)


def _overwrite(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Makes sums and ReLUs in-place on a convolution's or sum's result that nothing else reads.

    Neither needs its result for the backward pass, and a ReLU needs only its own.
    """
    fresh: set[fx.Node] = set()
    for node in list(graph.nodes):
        relu = node.op == "call_function" and node.target in _RELUS
        relu = relu or (node.op == "call_module" and type(modules.get(str(node.target))) is nn.ReLU)
        addition = node.op == "call_function" and node.target in _ADDITIONS and not node.kwargs
        first = node.args[0] if node.args else None
        free = isinstance(first, fx.Node) and first in fresh and len(first.users) == 1
        result = node
        if (relu or addition) and free:
            with graph.inserting_before(node):
                result = graph.call_function(F.relu_ if relu else _add_onto, (first,) if relu else node.args)
            node.replace_all_uses_with(result)
            graph.erase_node(node)
        if addition or (node.op == "call_function" and node.target is conv2d):
            fresh.add(result)


def _add_onto(left: Tensor, right: Any) -> Tensor:
    """Returns the sum, in-place on ``left`` if shape and type allow."""
    fits = isinstance(right, Tensor) and right.shape == left.shape and right.dtype == left.dtype
    return left.add_(right) if fits else left + right


def _channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
