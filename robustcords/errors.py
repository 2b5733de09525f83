"""Errors that a user can cause, and their wording: what, where, what is allowed, the nearest valid name."""

from __future__ import annotations

import difflib
import errno
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """The user's input is at fault. The command line prints the message and exits with status 2.

    Args:
        text: what is wrong, in one line.
        more: what else is, a line each, so that several mistakes do not take several runs.

    Attributes:
        lines: all of it.
    """

    def __init__(self, text: str, *more: str) -> None:
        super().__init__(text, *more)
        self.lines = (text, *more)

    def __str__(self) -> str:
        """Returns all lines."""
        return "\n".join(self.lines)


def together(errors: Sequence[UserError]) -> None:
    """Raises several errors as one, with each line once; nothing where there are none.

    Raises:
        UserError: there are some.
    """
    if lines := dict.fromkeys(line for error in errors for line in error.lines):
        raise UserError(*lines)


class RunError(Exception):
    """A run had to stop, and not because of the user's input. The command line prints why and exits with status 1."""


class LostProcess(RunError):  # noqa: N818 -- says what it is
    """Another process has died, has stopped, or cannot be reached any more.

    Args:
        text: which one, and why.
        speaks: whether this is the process that prints it; any that is left may have to, as the main one may be lost.
        died: whether it went without a word.
    """

    def __init__(self, text: str, *, speaks: bool, died: bool = False) -> None:
        super().__init__(text)
        self.speaks, self.died = speaks, died


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


def unwritable(path: Path, error: OSError) -> UserError | RunError:
    """Returns the error for a place that cannot be written to, as it says no, or as the disk is full or fails.

    The first is for the user to change (exit status 2), the other can happen to anyone (1).
    """
    return _unusable(path, error, "written")


def unreadable(path: Path, error: OSError) -> UserError | RunError:
    """Returns the error for a place that cannot be read; as `unwritable`."""
    return _unusable(path, error, "read")


def _unusable(path: Path, error: OSError, how: str) -> UserError | RunError:
    kind = RunError if error.errno in _FULL else UserError
    return kind(f"{path}: cannot be {how} ({error.strerror or error})")


def raised_at(error: BaseException) -> traceback.FrameSummary:
    """Returns the line that raised an error."""
    return traceback.extract_tb(error.__traceback__)[-1]


def one_line(error: BaseException, place: tuple[str, int] | None = None) -> str:
    """Returns an error of code that is not this package's own as a line: its kind, its text, and where it was raised.

    For example ``"ZeroDivisionError: division by zero (mine.py:12)"``.

    Args:
        error: as it was caught.
        place: the file's name and the line to point at; left out, those that raised it.
    """
    raised = raised_at(error)
    name, line = place or (Path(raised.filename).name, raised.lineno)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{text} ({name}:{line})"


@contextmanager
def one_line_from(what: str) -> Iterator[None]:
    """Context for code that is not this package's own: what it raises is one line that begins with ``what``.

    Raises:
        UserError: the code raised an error that is none of this package's.
    """
    try:
        yield
    except (UserError, RunError, Interrupted):
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: {one_line(error)}") from error


def kind_of(value: object) -> str:
    """Returns what a value is, for a message: ``"a list"``, ``"an int"``."""
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def continuation() -> str:
    """Returns how to continue a command that was stopped, as the end of a message."""
    again = dict.fromkeys(("evaluate", "sweep", "reproduce"), "; the same command continues where it stopped")
    how = {"run": "; continue with --resume", **again}
    command = next((word for word in sys.argv[1:] if word != "--debug"), "")
    return how.get(command, "")


def printable(text: str) -> str:
    """Returns a text with what is not printable escaped: one line that any terminal can show."""
    # Bytes of a name that are no UTF-8 stand in it as lone surrogates, which no file or terminal takes.
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in text
    )


def listed(names: Iterable[str]) -> str:
    """Returns names for a message, the first five of many: ``"a, b, c, d, e and 95 more"``."""
    shown = [printable(name) for name in names]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


MANY = 40
"""More names than a line can list."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns the end of an error message that says which names are allowed and which one was probably meant.

    Args:
        name: what the user wrote.
        valid: the names that would have been accepted.

    Returns:
        For example ``"; did you mean 'mart'? (one of: mart, sat, trades)"``; more than `MANY` names are counted alone.
    """
    names = sorted(valid)
    folded = {each.casefold(): each for each in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    guess = f"; did you mean '{folded[close[0]]}'?" if close else ""
    if not names:
        return ""
    return f"{guess} (one of {len(names)})" if len(names) > MANY else f"{guess} (one of: {', '.join(names)})"


class Interrupted(Exception):  # noqa: N818 -- nothing went wrong: the user asked for it
    """A signal, or the recipe's time limit, stopped the run; what was done so far is in a checkpoint.

    Args:
        number: the signal's; None where it was the time limit.

    Attributes:
        number: the signal's.
        status: the exit status: 128 and the signal's number, or 75, which sysexits.h has for "try again later".
    """

    def __init__(self, number: int | None) -> None:
        super().__init__(f"stopped by {signal_name(number)}" if number else "stopped at train.time_limit")
        self.number = number
        self.status = 128 + number if number else 75


def signal_name(number: int) -> str:
    """Returns what a signal is called."""
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal between the first and the last has none
        return f"signal {int(number)}"
    return f"Ctrl-C ({name})" if number == signal.SIGINT else name


def is_own(module: object) -> bool:
    """Returns whether a module, by its dotted name, belongs to this package."""
    return str(module).partition(".")[0] == __package__
