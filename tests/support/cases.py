"""Cases of one test, where a test for each would take longer to report than to run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import pytest

HAS_SUBMODLIB = find_spec("submodlib") is not None
"""There are no wheels of it for every Python."""


def can_run(what: object) -> bool:
    """Returns whether a case with this name, or with these values, needs nothing that is not installed."""
    return HAS_SUBMODLIB or "craig" not in str(what)


def cases(names: str | Iterable[str], values: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator like `pytest.mark.parametrize`, of which one test with all cases comes.

    The cases share the test's fixtures. All of them run; what fails says in which.
    """
    keys = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    values = [value for value in values if can_run(value)]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            failures: list[BaseException] = []
            for value in values:
                chosen = dict(zip(keys, value if len(keys) > 1 else (value,), strict=True))
                try:
                    test(**fixtures, **chosen)
                except (KeyboardInterrupt, SystemExit, pytest.skip.Exception):
                    raise
                except BaseException as error:  # pytest's own failures are no exceptions
                    error.add_note(f"case: {chosen}")
                    failures.append(error)
            if len(failures) == 1:
                raise failures[0]
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(values)} cases", failures)

        signature = inspect.signature(test)
        assert set(keys) <= signature.parameters.keys(), f"{test.__name__} takes {', '.join(signature.parameters)}"
        assert values, f"{test.__name__} has no case"
        rest = [parameter for name, parameter in signature.parameters.items() if name not in keys]
        run.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
        return run

    return decorate
