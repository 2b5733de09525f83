"""A stand-in for CUDA graphs on any machine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from robustcords.engine.cuda_graphs import Work


class Again:
    """Does the work anew, and writes where it wrote the first time, as a CUDA graph does."""

    def __init__(self) -> None:
        self.recorded: list[Any] = []

    alongside = staticmethod(nullcontext)

    def record(self, work: Work) -> tuple[Callable[[], object], Any]:
        """Returns the work, and copies of what it made."""
        made = work()
        self.recorded.append(made)
        if isinstance(made, Tensor):
            kept = made.detach().clone()
            return lambda: kept.copy_(work().detach()), kept
        places = tuple(None if each is None else each.clone() for each in made)

        def replay() -> None:
            for place, each in zip(places, work(), strict=True):
                if place is not None:
                    place.copy_(each)

        return replay, places
