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
    """Context of a change of a file or folder; turns failures into one-line errors.

    Raises:
        UserError: there is no permission to write.
        RunError: the disk is full, or fails.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from error


def check_writable(output: Path) -> None:
    """Checks early that the file of ``--output`` can be written.

    Raises:
        UserError: there is no such folder, or no permission to write to it.
        RunError: the disk is full, or fails.
    """
    with changing(output):
        if not output.parent.is_dir():
            raise UserError(f"--output {output}: there is no folder {output.parent}")
        tempfile.TemporaryFile(dir=output.parent).close()


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file atomically: to a temporary file next to it, which is flushed to the disk and renamed.

    Raises:
        UserError: there is no permission to write.
        RunError: the disk is full, or fails; the earlier file is unchanged.
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
    """Deletes temporary files that a killed process left in a folder; no other process may be writing to it."""
    for path in folder.glob(f".*{_UNFINISHED}"):
        with changing(path):
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk, so that a rename in it survives a power cut."""
    if os.name == "nt":  # Windows opens no folders, and its file system keeps a journal of names by itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_json(content: str | bytes) -> Any:
    """Parses JSON.

    Raises:
        ValueError: it is not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_object(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        UserError: it cannot be read, or has something else.
    """
    try:
        return dict(parse_json(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged: not a JSON object ({error})") from error


def write_json(path: Path, content: Any) -> None:
    """Writes an object as indented JSON, atomically; NaN and infinity, which JSON lacks, are an error."""
    write_atomic(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
