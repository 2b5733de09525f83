"""A clock for tests of what takes how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


class Clock:
    """A clock that stands still, but for what says that it takes its time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    def slow(self, patch: pytest.MonkeyPatch, owner: Any, name: str, seconds: float | Callable[..., float]) -> None:
        """Lets every call of a function take so long, which may depend on its arguments."""
        original = getattr(owner, name)

        def taking(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds(*args, **kwargs) if callable(seconds) else seconds
            return original(*args, **kwargs)

        patch.setattr(owner, name, taking)
