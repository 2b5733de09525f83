"""Working together with other processes, through torch.distributed where it has been started; alone otherwise.

Accelerate (or torchrun) starts it; components use these few functions and need to import neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn


def world_size() -> int:
    """Returns how many processes take part."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Returns this process's number, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Returns whether this is the process that writes and prints."""
    return rank() == 0


def barrier() -> None:
    """Waits for all processes."""
    if world_size() > 1:
        distributed.barrier()


def gather_rows(rows: Tensor) -> list[Tensor]:
    """Returns every process's rows, in the order of the processes.

    Args:
        rows: (n, ...); n may differ between processes, the rest may not.
    """
    if world_size() == 1:
        return [rows]
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    distributed.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    longest = int(max(count.item() for count in counts))
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return [part[: int(count.item())] for part, count in zip(parts, counts, strict=True)]


def sum_over(values: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
    """Returns the sums of each number over all processes, in float64."""
    total = torch.tensor(list(values), dtype=torch.float64, device=device)
    if world_size() > 1:
        distributed.all_reduce(total)
    return total.tolist()


def broadcast(tensor: Tensor) -> Tensor:
    """Returns the main process's tensor; elsewhere it is received into ``tensor``, which has its shape and dtype."""
    if world_size() > 1:
        distributed.broadcast(tensor, src=0)
    return tensor


def share_buffers(module: nn.Module) -> None:
    """Gives every process the main one's buffers, such as BatchNorm's statistics of its own share of the batches."""
    if world_size() == 1:
        return
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for buffer in module.buffers():
        kinds.setdefault(buffer.dtype, []).append(buffer)
    for buffers in kinds.values():
        whole = broadcast(torch.cat([buffer.flatten() for buffer in buffers]))
        for buffer, part in zip(buffers, whole.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))
