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
    """Returns how many processes take part."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Returns this process's number, from 0."""
    return distributed.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Returns whether this is the process that writes and prints."""
    return rank() == 0


def release() -> None:
    """Ends the work with other processes, and gloo's threads with it; for the end of the program.

    A thread that is still there when the interpreter goes away ends the whole process with SIGABRT now and then.
    """
    if distributed.is_available() and distributed.is_initialized() and distributed.get_backend() == "gloo":
        distributed.destroy_process_group()
    gc.collect()  # what is wrapped for several processes holds on to the group, in reference cycles


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


def rows_before(rows: Tensor) -> int:
    """Returns how many rows (n, ...) earlier processes have: where this one's begin in those of all together."""
    return sum(map(len, gather_rows(rows)[: rank()]))


def sum_over(values: Sequence[float], device: torch.device | str = "cpu") -> list[float]:
    """Returns the sums of each number over all processes, in float64."""
    total = torch.tensor(list(values), dtype=torch.float64, device=device)
    if world_size() > 1:
        distributed.all_reduce(total)
    return total.tolist()


class _Sum(torch.autograd.Function):
    """A sum over processes, whose gradient is the sum of what every process's loss has to say of it."""

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

    A process differentiates its own loss; the gradients are those of the sum of all processes' losses. All of them have
    to go backward through it.
    """
    if world_size() == 1:
        return tensor
    total: Tensor = _Sum.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def broadcast(tensor: Tensor) -> Tensor:
    """Returns the main process's tensor; elsewhere it is received into ``tensor``, which has its shape and dtype."""
    if world_size() > 1:
        distributed.broadcast(tensor, src=0)
    return tensor


def decide_together(decide: Callable[[], T]) -> T:
    """Lets the main process decide, and gives every process its answer, or its error.

    Where the main process fails, none is left waiting for it: it raises what `decide` raised, and the others a
    `UserError` or `RunError` with the same text.

    Args:
        decide: is called in the main process alone; returns something that can be pickled, with tensors on the CPU.

    Raises:
        UserError: the main process raised one.
        RunError: the main process raised one, or anything else, whose type the text names.
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
    """Returns what each process makes, in the order of the processes, to all of them.

    Where one fails, none is left waiting for it: it raises what `make` raised, and the others a `UserError` or
    `RunError` with the same text.

    Args:
        make: is called in every process; returns something that can be pickled, with tensors on the CPU.

    Raises:
        UserError: a process raised one.
        RunError: a process raised one, or anything else, whose type the text names.
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
    """Returns what is made, or the error that it ends in."""
    try:
        return make(), None
    except Exception as error:
        return None, error


def _told(failure: Exception | None) -> tuple[type[Exception], str] | None:
    """Returns how a process tells the others of its failure: the kind to raise, and the text."""
    if failure is None:
        return None
    kind = next((kind for kind in (UserError, RunError) if isinstance(failure, kind)), None)
    return (kind, str(failure)) if kind else (RunError, f"{type(failure).__name__}: {failure}")


def _handed_over(made: Any, problem: tuple[type[Exception], str] | None) -> Any:
    """Returns what another process has made, or raises the failure that it reported."""
    if problem:
        kind, text = problem
        raise kind(text)
    return made


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
