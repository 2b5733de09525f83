"""Atomic and durable file writes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from robustcords.errors import UserError, unwritable

_UNFINISHED = ".tmp"


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Is a change of a file or folder; a failure is reported in one line.

    Raises:
        UserError: it may not be written to.
        RunError: the disk is full, or fails.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def check_writable(output: Path) -> None:
    """Checks, before there is anything to lose, that a file can be written where ``--output`` says.

    Raises:
        UserError: there is no such folder, or it may not be written to.
        RunError: the disk is full, or fails.
    """
    with changing(output):
        if not output.parent.is_dir():
            raise UserError(f"--output {output}: there is no folder {output.parent}")
        tempfile.TemporaryFile(dir=output.parent).close()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file whole: into a temporary file next to it, flushed to the disk, then renamed over it.

    Raises:
        UserError: it may not be written to.
        RunError: the disk is full, or fails; what was there before still is.
    """
    with changing(path):
        # Names of files may hold bytes that are no text, which Python has as lone surrogates.
        _replace(path, content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def _replace(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner may read; a result is an ordinary file.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def clear_unfinished(folder: Path) -> None:
    """Deletes what a process that was killed has left of `write_atomic` in a folder that nobody writes to now."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        with changing(path):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's list of names to the disk, so that a rename in it survives a power cut."""
    if os.name == "nt":  # Windows opens no folders, and its file system keeps a journal of names by itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_json(content: str | bytes) -> Any:
    """Returns what JSON says.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested too deeply to be anything that was written here.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_object(path: Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        return dict(parse_json(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged: not a JSON object ({error})") from error


def write_json(path: Path, content: Any) -> None:
    """Writes an object as indented JSON, atomically; NaN and infinity, which JSON has no words for, are an error."""
    write_atomic(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
