"""Long work over many examples: fixed chunks, distributed over processes, recorded so that it can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustcords.runtime import collectives
from robustcords.storage.files import changing, parse_json, write_atomic

_PENDING = -1
_SMALLEST, _LARGEST, _USUAL_NUMBER = 128, 1024, 16

Work = Callable[[Tensor], tuple[Tensor, list[str]]]
"""Rows (k,) int64 to one number >= 0 for each (k,) int64, and warnings."""

Progress = Callable[[str, int, int], None]
"""Called with what is being measured, how many examples are done, and how many there are."""


def chunks(count: int) -> list[Tensor]:
    """Returns the rows of each chunk: about 16 chunks of 128 to 1,024 examples.

    They depend on the number of examples only, so the batches that a model sees, and with them the last bits of its
    logits, are the same for any number of processes.
    """
    size = min(_LARGEST, max(_SMALLEST, -(-count // _USUAL_NUMBER)))
    return list(torch.arange(count).split(size))


@dataclass(frozen=True)
class Ledger:
    """A file of finished chunks, from which work is resumed.

    Attributes:
        folder: created when needed; None for no file.
        fingerprint: everything that the outcomes depend on, as JSON values. Each fingerprint has its own file, so
            outcomes of another model, data set or attack are never used.
    """

    folder: Path | None
    fingerprint: dict[str, Any]

    @property
    def path(self) -> Path:
        """The file of this fingerprint."""
        digest = hashlib.sha256(json.dumps(self.fingerprint, sort_keys=True).encode()).hexdigest()
        return (self.folder or Path()) / f"{digest[:32]}.json"

    def load(self, count: int) -> tuple[Tensor, list[str]]:
        """Returns the outcomes (count,) int64, -1 for missing ones, and the warnings so far.

        A file that is missing, unreadable or of another fingerprint counts as nothing done.
        """
        nothing = torch.full((count,), _PENDING), list[str]()
        if self.folder is None:
            return nothing
        try:
            content = parse_json(self.path.read_bytes())
            outcomes = torch.tensor(content["outcomes"], dtype=torch.int64)
            known, warnings = content["fingerprint"] == self.fingerprint, [str(text) for text in content["warnings"]]
        except (OSError, ValueError, TypeError, KeyError, RuntimeError):  # torch's: a number of more than 64 bits
            return nothing
        return (outcomes, warnings) if known and outcomes.shape == (count,) else nothing

    def save(self, outcomes: Tensor, warnings: list[str]) -> None:
        """Writes all outcomes and warnings, atomically."""
        if self.folder is None:
            return
        with changing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        content = {"fingerprint": self.fingerprint, "outcomes": outcomes.tolist(), "warnings": warnings}
        write_atomic(self.path, json.dumps(content, allow_nan=False) + "\n")


def run(
    name: str, count: int, work: Work, *, ledger: Ledger, device: torch.device, on_progress: Progress | None = None
) -> tuple[Tensor, list[str]]:
    """Computes all chunks that the ledger lacks; only the main process reads and writes it.

    Args:
        name: passed to ``on_progress``.
        count: number of examples.
        work: computes one chunk, in one process.
        ledger: of the finished chunks.
        device: for collectives: the CPU with gloo, the process's own device with NCCL.
        on_progress: called on every process, after each round of chunks.

    Returns:
        In every process the outcomes (count,) int64 on the CPU, and the distinct warnings of all processes.
    """
    blank = torch.full((count,), _PENDING), list[str]()
    outcomes, warnings = ledger.load(count) if collectives.is_main() else blank
    outcomes = collectives.broadcast(outcomes.to(device)).cpu()
    warnings = _gather_texts(warnings, device)
    pending = [rows for rows in chunks(count) if bool((outcomes[rows] == _PENDING).any())]
    _tell(on_progress, name, outcomes)
    for first in range(0, len(pending), collectives.world_size()):
        mine = pending[first : first + collectives.world_size()][collectives.rank() :][:1]
        table, texts = torch.zeros((0, 2), dtype=torch.int64), list[str]()
        for rows in mine:
            results, texts = work(rows)
            table = torch.stack([rows, results.cpu()], dim=1)
        whole = torch.cat(collectives.gather_rows(table.to(device))).cpu()
        outcomes[whole[:, 0]] = whole[:, 1]
        warnings = list(dict.fromkeys(warnings + _gather_texts(texts, device)))
        if collectives.is_main():
            ledger.save(outcomes, warnings)
        _tell(on_progress, name, outcomes)
    return outcomes, warnings


def _tell(on_progress: Progress | None, name: str, outcomes: Tensor) -> None:
    if on_progress:
        on_progress(name, int((outcomes != _PENDING).sum()), len(outcomes))


def _gather_texts(texts: list[str], device: torch.device) -> list[str]:
    """Returns the texts of all processes, in the order of the processes."""
    data = torch.tensor(list(json.dumps(texts).encode()), dtype=torch.uint8, device=device)
    return [text for part in collectives.gather_rows(data) for text in json.loads(bytes(part.tolist()))]
