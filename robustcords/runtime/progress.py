"""Progress of long work: live bars with an ETA on a terminal, plain lines elsewhere, only on the main process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from robustcords.errors import printable

LINE_EVERY_S = 30.0
_FILE_WIDTH = 200


class Update(Protocol):
    """Reports progress of one task."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Reports progress, with a short note such as the current loss."""


class Display:
    """The progress display of a run; a context manager.

    Args:
        visible: False shows nothing, as in every process but the main one.
        console: standard error by default, so that standard output has results only.
    """

    def __init__(self, visible: bool = True, console: Console | None = None) -> None:
        self.visible = visible
        self.console = console or verbatim(file=sys.stderr)
        self._told: set[str] = set()
        self._bars: Progress | None = None

    def __enter__(self) -> Display:
        """Starts the live display on a terminal."""
        if self.visible and self.console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self.console,
            )
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the live display."""
        if self._bars:
            self._bars.stop()
            self._bars = None

    def say(self, text: str) -> None:
        """Prints a permanent line."""
        if self.visible:
            self.console.print(printable(text), markup=False, soft_wrap=True)

    def say_once(self, subject: str, text: str) -> None:
        """Prints a line, once per subject."""
        if subject not in self._told:
            self._told.add(subject)
            self.say(text)

    @contextmanager
    def task(self, label: str) -> Iterator[Update]:
        """Context that yields a function which reports progress of one task."""
        bars = self._bars
        if bars is None:
            yield self._lines(label) if self.visible else _silent
            return
        number = bars.add_task(label, total=None, note="")
        try:
            yield lambda done, total, note="": bars.update(number, completed=done, total=total, note=note)
        finally:
            bars.remove_task(number)

    def _lines(self, label: str) -> Update:
        """Returns a reporter that prints a line now and then, so that a log of days stays readable."""
        start = printed = time.monotonic()
        before = 0

        def update(done: int, total: int, note: str = "") -> None:
            nonlocal start, printed, before
            now = time.monotonic()
            if done < before:  # the next part of the same work, which counts from the beginning
                start = now
            before = done
            if now - printed < LINE_EVERY_S or not 0 < done < total:
                return
            printed = now
            remaining = duration((now - start) / done * (total - done))
            self.say(f"{label}: {done} of {total}, {remaining} to go{'  ' + note if note else ''}")

        return update


class Board:
    """A live table on a terminal, and occasional lines elsewhere; a context manager.

    Args:
        console: standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or verbatim(file=sys.stderr)
        self._live: Live | None = None
        self._shown = time.monotonic()

    def __enter__(self) -> Board:
        """Starts the live display on a terminal."""
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the live display; the last table stays."""
        if self._live:
            self._live.stop()
            self._live = None

    def show(self, make: Callable[[], Table]) -> None:
        """Shows a table, at most twice a second; without a terminal its caption, every half minute."""
        now = time.monotonic()
        if now - self._shown < (0.5 if self._live else LINE_EVERY_S):
            return
        self._shown, table = now, make()
        if self._live:
            self._live.update(table, refresh=True)
        else:
            self.say(str(table.caption))

    def say(self, text: str) -> None:
        """Prints a permanent line above the table."""
        self.console.print(text, markup=False, soft_wrap=True)


def for_tables(console: Console | None = None) -> Console:
    """Returns a console for tables: of the terminal's width, and wide enough for them in a file or a pipe.

    Args:
        console: standard output by default.
    """
    console = console or verbatim()
    return console if console.is_terminal else verbatim(file=console.file, width=_FILE_WIDTH)


def verbatim(file: IO[str] | None = None, width: int | None = None) -> Console:
    """Returns a console that prints text verbatim, without markup and colours.

    Args:
        file: standard output by default.
        width: in characters; the terminal's by default.
    """
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


def _silent(done: int, total: int, note: str = "") -> None:
    """Reports nothing."""


def duration(seconds: float) -> str:
    """Formats seconds as ``"7 s"``, ``"3:05"`` or ``"2:03:05"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def epoch_line(rows: Sequence[Mapping[str, Any]], label: str) -> str:
    """Returns the last epoch's metrics as a line of text, beginning with its name, with the time left.

    Args:
        rows: the metrics of all epochs so far.
        label: the last epoch's name.
    """
    row, share = rows[-1], rows[-1]["progress"]
    left = sum(each["seconds"]["total"] for each in rows) * (1 - share) / share
    parts = [
        label,
        f"loss {row['train_loss']:.3f}",
        f"{row['subset_size']} images",
        f"{row['images_per_second']:.0f} images/s",
        duration(row["seconds"]["total"]),
        *([f"{duration(left)} to go"] if share < 1 else []),
    ]
    validation = row.get("validation", {})
    if {"clean", "robust"} <= validation.keys():
        parts.append(f"validation {validation['clean']:.1%} clean, {validation['robust']:.1%} PGD")
    return "  ".join(parts)
