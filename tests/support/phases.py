"""What a process is doing, where another one can see it also after it has been killed: in a page of shared memory."""

from __future__ import annotations

import functools
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHASES = (
    "start or end",
    "resuming",
    "step",
    "attack",
    "selection",
    "selection file",
    "validation",
    "weights file",
    "metrics line",
    "checkpoint",
    "evaluation",
    "AutoAttack",
    "evaluation file",
    "report",
)


def page(file: Path) -> mmap.mmap:
    """Returns the shared page that a file stands for; the file is made where there is none."""
    file.touch()
    with file.open("r+b") as opened:
        opened.truncate(1)
        return mmap.mmap(opened.fileno(), 1)


def show(file: Path) -> None:
    """Has this process show from now on which of the phases it is in, the innermost of several."""
    from robustcords.evaluation.attacks import autoattack
    from robustcords.evaluation.ledger import Ledger
    from robustcords.experiments import run as experiment
    from robustcords.methods import adversarial
    from robustcords.selection.selector import SubsetSelector
    from robustcords.storage.checkpoint import Checkpoints
    from robustcords.storage.run_directory import RunDirectory
    from robustcords.training.callbacks.validation import Validation
    from robustcords.training.trainer import Trainer

    shared = page(file)
    for phase, owner, name in (
        ("resuming", Trainer, "restore"),
        ("step", Trainer, "train_step"),
        ("attack", adversarial, "attack_batch"),
        ("selection", SubsetSelector, "select"),
        ("selection file", RunDirectory, "save_selection"),
        ("validation", Validation, "after_epoch"),
        ("weights file", Trainer, "save_weights"),
        ("metrics line", RunDirectory, "add_row"),
        ("checkpoint", Checkpoints, "save"),
        ("evaluation", experiment, "test"),
        ("AutoAttack", autoattack, "run"),
        ("evaluation file", Ledger, "save"),
        ("report", experiment, "write_report"),
    ):
        setattr(owner, name, _shown(shared, PHASES.index(phase), getattr(owner, name)))


def _shown(shared: mmap.mmap, phase: int, work: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(work)
    def shown(*arguments: Any, **options: Any) -> Any:
        before, shared[0] = shared[0], phase
        try:
            return work(*arguments, **options)
        finally:
            shared[0] = before

    return shown
