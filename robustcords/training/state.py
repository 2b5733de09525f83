"""Progress of training, and checks for NaN and infinity before a checkpoint is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from robustcords.errors import RunError
from robustcords.storage.run_directory import RunDirectory

PARTS = ("model", "optimizer", "scaler", "averaging", "selector", "budget")
"""The names of the trainer's own parts in a checkpoint."""

TAKEN = frozenset(
    {*PARTS, "method", "effort", "attack", "adversary", "data", "seconds"}
    | {"epoch", "progress", "train_loss", "lr", "subset_size", "skipped_steps", "images_per_second"}
    | {"counts", "selection"}
)
"""The other keys of a checkpoint and of a line of metrics, which no callback may overwrite."""


@dataclass
class Progress:
    """How far training has come; all of it is in every checkpoint.

    Attributes:
        epoch: the epoch that is running, from 0.
        step: optimiser steps done in it.
        steps: optimiser steps done altogether.
        loss: sum over the epoch's examples of weight times loss.
        weight: sum of the epoch's weights.
        skipped: the epoch's steps that were not taken, as gradients in float16 had overflown.
        counts: the epoch's examples by kind, where the effort tells them apart.
    """

    epoch: int = 0
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    weight: float = 0.0
    skipped: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, loss: float, weight: float, counts: Mapping[str, float], *, skipped: bool) -> None:
        """Adds a step.

        Args:
            loss: the weighted mean over the global batch.
            weight: sum of its weights.
            counts: how many of its examples were of each kind.
            skipped: whether the step was not taken, as gradients in float16 had overflown.
        """
        if skipped:
            self.skipped += 1
        else:
            self.loss += loss * weight
            self.weight += weight
        for kind, count in counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + int(count)
        self.step += 1
        self.steps += 1

    @property
    def place(self) -> str:
        """The last step that was taken, for a message."""
        return f"in epoch {self.epoch} after step {self.step - 1}"

    @property
    def mean_loss(self) -> float:
        """The epoch's weighted mean loss so far; NaN where no step has been taken."""
        return self.loss / self.weight if self.weight else math.nan


def check_weights(model: nn.Module, where: str, run: RunDirectory) -> None:
    """Checks what a checkpoint is about to keep.

    Raises:
        RunError: a weight is NaN or infinite. Buffers may hold minus infinity, as masks of attention do.
    """
    weights = all(bool(value.isfinite().all()) for value in model.parameters())
    if not (weights and all(bool((value.isfinite() | (value == -math.inf)).all()) for value in model.buffers())):
        raise _not_finite("the weights are", where, run, _DIVERGED)


def check_step(loss: float, norm: float, examples: Tensor, progress: Progress, run: RunDirectory) -> None:
    """Checks what a step came to.

    Args:
        loss: the weighted mean over the global batch.
        norm: of its gradient.
        examples: their numbers in the full training set.
        progress: before the step.
        run: what is left.

    Raises:
        RunError: the loss or the gradient is NaN or infinite.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return
    numbers = ", ".join(map(str, examples.tolist()))
    where = f"in epoch {progress.epoch}, step {progress.step} (training examples {numbers})"
    if math.isfinite(loss):
        other = f", or {_DIVERGED}" if progress.steps else ""
        advice = f"look for a root or logarithm of 0 in the model and the loss{other}"
    elif not progress.steps:
        advice = "check the model's initial weights, and the loss"
    else:
        advice = _DIVERGED
    raise _not_finite("a gradient is" if math.isfinite(loss) else "the loss is", where, run, advice)


def check_epoch(progress: Progress, run: RunDirectory) -> None:
    """Checks that an epoch has trained, in float16 too, where steps with infinite gradients are not taken.

    Raises:
        RunError: it has not taken any step.
    """
    if progress.skipped and not progress.weight:
        advice = 'float16 overflows where bfloat16 does not: set train.precision to "bf16" or "fp32"'
        raise _not_finite("the gradients of all steps were", f"in epoch {progress.epoch}", run, advice)


_DIVERGED = "lower optimizer.lr or set train.clip_gradient"


def _not_finite(what: str, where: str, run: RunDirectory, advice: str) -> RunError:
    """Returns the error for numbers that are NaN or infinite: where they came up, and what is left."""
    kept = run.checkpoints.paths()
    good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    return RunError(f"{what} not finite {where}; {good}; {advice}")


def upgraded(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint's state as this version writes it; earlier ones kept some of it elsewhere."""
    progress = dict(state["progress"])
    best = progress.pop("best", None)
    earlier = {"validation": {"best": best}, "attack": {}}
    if "effort" not in state:  # 0.1 called the method the adversary; all that it kept was the effort's
        earlier |= {"effort": state.get("adversary", state.get("method")), "method": {}}
        state = {name: part for name, part in state.items() if name != "method"}
    return {**earlier, **state, "progress": progress}
