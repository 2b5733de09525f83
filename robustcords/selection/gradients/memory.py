"""Whether the gradients of all examples fit in memory, for strategies that choose from all of them at once."""

from __future__ import annotations

import torch

from robustcords.data.storage import free_memory, in_units
from robustcords.errors import UserError


def refuse_larger_than_memory(count: int, width: int, device: torch.device) -> None:
    """Checks, before training, that a device has the memory for what every process keeps of all gradients.

    That is the factors alone, in float32: what more a selection takes for a while is left out, so that nothing is
    refused that could work.

    Args:
        count: how many examples are selected from.
        width: numbers that are kept of each: features, logits and their gradients, of each view.
        device: where they are kept.

    Raises:
        UserError: it has not.
    """
    size = 4 * count * width
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if size > free:
        raise UserError(
            f"selecting from {count:,} images at once keeps {in_units(size)} of gradients in every process, and there "
            f'is room for {in_units(free)}: set selector.granularity = "per_class", which keeps a part at a time'
        )
