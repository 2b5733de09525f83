"""Collective operations through torch.distributed if it is initialised, and on one process otherwise.

Accelerate (or torchrun) starts it; components use these few functions and need to import neither.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from robustcords.errors import RunError, UserError

T = TypeVar("T")


def world_size() -> int:
    """Returns the number of processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Returns this process's rank, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Returns whether this is the process that writes and prints."""
    return rank() == 0


def release() -> None:
    """Destroys the process group, and gloo's threads with it, at the end of the program.

    A thread that is still running when the interpreter shuts down occasionally aborts the process.
    """
    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()
    gc.collect()  # what is wrapped for several processes holds on to the group, in reference cycles


def barrier() -> None:
    """Waits for all processes."""
    if world_size() > 1:
        distributed.barrier()


def gather_rows(rows: Tensor) -> list[Tensor]:
    """Returns every process's rows, by rank.

    Args:
        rows: (n, ...); only n may differ between processes.
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


def rows_before(rows: Tensor) -> int:
    """Returns the number of rows (n, ...) of processes with lower rank: the offset of this one's in all rows."""
    return sum(map(len, gather_rows(rows)[: rank()]))


def sum_over(values: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
    """Returns the sums of each number over all processes, in float64."""
    total = torch.tensor(list(values), dtype=torch.float64, device=device)
    if world_size() > 1:
        distributed.all_reduce(total)
    return total.tolist()


class _Sum(torch.autograd.Function):
    """A sum over processes, whose gradient is summed over the processes too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        del ctx
        total = tensor.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        return differentiable_sum(*gradients)


def differentiable_sum(tensor: Tensor) -> Tensor:
    """Returns the sum of every process's tensor, of equal shapes, with a gradient of any order.

    Each process differentiates its own loss; the gradients are those of the sum of all processes' losses. All processes
    have to run the backward pass.
    """
    if world_size() == 1:
        return tensor
    total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def broadcast(tensor: Tensor) -> Tensor:
    """Returns the main process's tensor; other processes receive it into ``tensor``, of the same shape and dtype."""
    if world_size() > 1:
        distributed.broadcast(tensor, src=0)
    return tensor


def decide_together(decide: Callable[[], T]) -> T:
    """Calls a function in the main process, and returns its result in every process.

    If it fails, no process is left waiting: the main process raises the original error, and the others a `UserError` or
    `RunError` with the same text.

    Args:
        decide: called in the main process only; returns something picklable, with tensors on the CPU.

    Raises:
        UserError: the main process raised one.
        RunError: the main process raised one, or another error, whose type the text names.
    """
    made, failure = _attempt(decide) if is_main() else (None, None)
    answer: list[Any] = [made, _told(failure)]
    if world_size() > 1:
        distributed.broadcast_object_list(answer, src=0)
    if failure:
        raise failure
    decided: T = _handed_over(*answer)
    return decided


def gather_objects(make: Callable[[], T]) -> list[T]:
    """Calls a function in every process, and returns all results, by rank, in every process.

    If one fails, no process is left waiting: it raises the original error, and the others a `UserError` or `RunError`
    with the same text.

    Args:
        make: called in every process; returns something picklable, with tensors on the CPU.

    Raises:
        UserError: a process raised one.
        RunError: a process raised one, or another error, whose type the text names.
    """
    if world_size() == 1:
        return [make()]
    made, failure = _attempt(make)
    everyone: list[Any] = [None] * world_size()
    distributed.all_gather_object(everyone, (made, _told(failure)))
    if failure:
        raise failure
    return [_handed_over(*each) for each in everyone]


def _attempt(make: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Returns a function's result, or the error that it raises."""
    try:
        return make(), None
    except Exception as error:
        return None, error


def _told(failure: Exception | None) -> tuple[type[Exception], str] | None:
    """Returns what the other processes raise for a failure: the class, and the text."""
    if failure is None:
        return None
    kind = next((kind for kind in (UserError, RunError) if isinstance(failure, kind)), None)
    return (kind, str(failure)) if kind else (RunError, f"{type(failure).__name__}: {failure}")


def _handed_over(made: Any, problem: tuple[type[Exception], str] | None) -> Any:
    """Returns another process's result, or raises the failure that it reported."""
    if problem:
        kind, text = problem
        raise kind(text)
    return made


def share_buffers(module: nn.Module) -> None:
    """Broadcasts the main process's buffers, such as BatchNorm's statistics."""
    if world_size() == 1:
        return
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for buffer in module.buffers():
        kinds.setdefault(buffer.dtype, []).append(buffer)
    for buffers in kinds.values():
        whole = broadcast(torch.cat([buffer.flatten() for buffer in buffers]))
        for buffer, part in zip(buffers, whole.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))
