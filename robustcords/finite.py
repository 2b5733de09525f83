"""Ending a run whose numbers are NaN or infinite, before a checkpoint keeps them."""

from __future__ import annotations

from torch import nn

from robustcords.errors import RunError
from robustcords.run_directory import RunDirectory


def check_weights(model: nn.Module, where: str, run: RunDirectory | None) -> None:
    """Checks what a checkpoint is about to keep.

    Raises:
        RunError: a weight is NaN or infinite.
    """
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise not_finite("the weights are", where, run)


def not_finite(what: str, where: str, run: RunDirectory | None) -> RunError:
    """Returns the error for numbers that are NaN or infinite: where they came up, and what is left."""
    kept = run.checkpoints.paths() if run else []
    good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    return RunError(f"{what} not finite {where}; {good}; lower optimizer.lr or set train.clip_gradient")
