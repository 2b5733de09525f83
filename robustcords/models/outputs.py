"""The logits among the outputs of any network: tensors, tuples, dictionaries, dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustcords.engine.memory_format import own_memory
from robustcords.engine.modes import evaluation_mode, training_mode
from robustcords.errors import UserError
from robustcords.models.base import ImageSize, described, reason


class LogitsOnly(nn.Module):
    """Reduces a network with several outputs to its logits.

    Args:
        network: images (B, C, H, W) to outputs in which `logits_in` finds the logits, in train and eval mode.
        num_classes: number of logits.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network, self.num_classes = network, num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, classes)."""
        logits = logits_in(self.network(x), (x.shape[0], self.num_classes))  # len would fix B in an export
        assert logits is not None  # `as_classifier` has seen it in both modes
        return logits


def logits_in(output: Any, shape: tuple[int, int]) -> Tensor | None:
    """Returns the logits in a network's output; None if they cannot be identified.

    They are the output itself, its entry ``logits`` (a key, or a field of a named tuple, a dataclass or a Hugging Face
    output), or its only tensor of the right shape.

    Args:
        output: a tensor, tuple, list, mapping or object with fields.
        shape: (B, classes).
    """
    if isinstance(output, Tensor):
        return output if output.shape == shape else None
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    fitting = [named] if isinstance(named, Tensor) else list(_parts(output))
    fitting = [part for part in fitting if isinstance(part, Tensor) and part.shape == shape]
    return fitting[0] if len(fitting) == 1 else None


def as_classifier(name: str, network: nn.Module, channels: int, image_size: ImageSize, num_classes: int) -> nn.Module:
    """Returns a network that outputs logits in both modes: unchanged, or wrapped in `LogitsOnly`.

    Two black images are passed through it in each mode; its modes and buffers are restored.

    Args:
        name: of the model, for messages.
        network: any network.
        channels: of the images.
        image_size: height and width.
        num_classes: how many logits there have to be.

    Raises:
        UserError: the network cannot take such images, or it is not clear which part of its output the logits are.
    """
    images, wanted = torch.zeros(2, channels, *image_size), (2, num_classes)
    plain = True
    own_memory(network)
    # Eval mode first: it gives parameters of unknown size (nn.LazyLinear) theirs, and buffers as they will be kept.
    for mode, in_mode in (("eval", evaluation_mode), ("train", training_mode)):
        try:
            with in_mode(network), torch.no_grad():
                output = network(images)
        except Exception as error:
            where = "" if mode == "eval" else " in train mode"
            raise UserError(
                f"model {name!r} cannot take {described(channels, image_size)}{where}: {reason(error)}"
            ) from error
        if logits_in(output, wanted) is None:
            raise UserError(
                f"model {name!r} returns {_summary(output)} for two images in {mode} mode; it must return logits "
                f"{wanted}, or name one part of its output 'logits'"
            )
        plain = plain and isinstance(output, Tensor)
    return network if plain else LogitsOnly(network, num_classes)


def _parts(output: Any) -> list[Any]:
    """Returns the parts of an output that is not a tensor; none where it has no parts."""
    if isinstance(output, Mapping):
        return list(output.values())
    if isinstance(output, (tuple, list)):
        return list(output)
    return list(getattr(output, "__dict__", {}).values())


def _summary(output: Any) -> str:
    """Returns what an output is, in a few words."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    shapes = [str(tuple(part.shape)) for part in _parts(output) if isinstance(part, Tensor)]
    holding = f" of tensors {', '.join(shapes)}" if shapes else ""
    return f"a {type(output).__name__}{holding}"
