"""Whether an error comes from this package or from a custom class."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from types import CodeType, FrameType

from robustcords.errors import is_own, one_line

_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def outside_failure(error: BaseException) -> str | None:
    """Returns what to say of an error in a class from outside this package; None where it may be this package's fault.

    The innermost frame decides that is a method of a class of this package, a method of a subclass from outside, or
    code that is neither this package's nor a library's. So `torch` failing at what a loss hands it is the loss's doing,
    as is a helper of this package failing at it. Memory that runs out is nobody's.

    Args:
        error: as it was caught; its traceback begins where that was.

    Returns:
        For example ``"mine:MyLoss.__call__ failed: KeyError: 'x' (mine.py:12)"``.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # CUDA's is torch's own
        return None
    frames = [*traceback.walk_tb(error.__traceback__)][::-1]
    guilty: list[tuple[FrameType, int]] = []
    for frame, line in frames:
        owner = _owner(frame)
        if _is_outside(frame, owner):
            guilty.append((frame, line))
        elif is_own(frame.f_globals.get("__name__")) and owner is not None:
            break
    if not guilty:
        return None
    places = [place for place in guilty if not is_own(place[0].f_globals.get("__name__"))] or guilty
    frame, line = places[0]
    return f"{_name(guilty)} failed: {one_line(error, (Path(frame.f_code.co_filename).name, line))}"


def _owner(frame: FrameType) -> type | None:
    """Returns the class whose method a frame runs, also from a function that is defined in one."""
    local = frame.f_locals
    part = local.get("self", local.get("cls"))
    return None if part is None else part if isinstance(part, type) else type(part)


def _is_outside(frame: FrameType, owner: type | None) -> bool:
    extends = (
        owner is not None and not is_own(owner.__module__) and any(is_own(kind.__module__) for kind in owner.__mro__)
    )
    return extends or not (is_own(frame.f_globals.get("__name__")) or _is_library(frame.f_code))


def _is_library(code: CodeType) -> bool:
    # What is compiled from no file, such as a dataclass's methods, is whoever's who calls it.
    return code.co_filename.startswith(("<", *_LIBRARIES)) or "site-packages" in Path(code.co_filename).parts


def _name(guilty: list[tuple[FrameType, int]]) -> str:
    """Returns what to call the code at fault: by its class where it has one, else by its function."""
    for frame, _ in guilty:
        owner = _owner(frame)
        if owner is not None and not is_own(owner.__module__):
            return f"{owner.__module__}:{owner.__qualname__}.{frame.f_code.co_name}"
    code = guilty[-1][0]
    return f"{code.f_globals.get('__name__')}:{code.f_code.co_qualname}"
