"""``robustcords plan``: the cost of recipes on this machine, from a few measured steps of each."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from robustcords.config.schema import parse_duration
from robustcords.data.split import sample
from robustcords.errors import UserError
from robustcords.experiments import build
from robustcords.experiments.run import load_images, session
from robustcords.recipe.recipe import Recipe
from robustcords.report.plan_tables import SURVIVING, Planned
from robustcords.runtime.session import Session
from robustcords.training.costs import Costs
from robustcords.training.measuring import calendar, measure, seconds_of_pass
from robustcords.training.trainer import Trainer

_SECONDS = 2.0
_HIGH_WATER = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation takes, see `Planned`."""

    images: int
    seconds: float
    per_image: Mapping[str, float]
    unknown: Sequence[str]


def time_of(text: str | None) -> timedelta | None:
    """Returns the time that ``--budget`` says.

    Raises:
        UserError: it is none.
    """
    try:
        return None if text is None else timedelta(seconds=parse_duration(text).total_seconds())
    except ValueError as error:
        raise UserError(f"--budget: {error}") from None


def plan(recipe: Recipe, name: str, budget: timedelta | None = None) -> Planned:
    """Returns what a recipe costs on this machine; takes some seconds, most of which go into reading the data.

    Args:
        recipe: which.
        name: what to call it.
        budget: time to train; None as the recipe says.

    Raises:
        UserError: the recipe cannot be run here.
    """
    with session(recipe) as work:
        start = time.perf_counter()
        images = load_images(recipe, work)
        loading = time.perf_counter() - start
        trainer = build.trainer(build.resolved(recipe, work.accelerator), images, work)
        trainer.model.train()
        _forget_peak(work)
        length = trainer.length
        time_to_train = budget or recipe.train.budget
        seconds = time_to_train.total_seconds() if time_to_train else None

        def epochs(step: float) -> float:
            return length.epochs if length.epochs < math.inf else (seconds or 0.0) / step / length.batches

        costs = measure(trainer, _SECONDS, epochs)
        peak = _peak(work)
        return _planned(recipe, name, costs, trainer, seconds, peak, _evaluation(recipe, images, trainer), loading)


def _planned(
    recipe: Recipe,
    name: str,
    costs: Costs,
    trainer: Trainer,
    seconds: float | None,
    peak: int,
    evaluation: Evaluated,
    loading: float,
) -> Planned:
    length, when = trainer.length, calendar(trainer)
    batches = length.batches
    fitting = costs.fitting(seconds, when, 0) if seconds else None
    if length.budget:
        steps = fitting or 1
    else:
        steps = round(length.epochs * batches) if length.steps is None else sum(length.steps)
    whole = costs.total(steps, when)
    epochs = steps / batches
    return Planned(
        recipe=name,
        device=str(trainer.device),
        batches=batches,
        epochs=epochs,
        seconds_per_epoch=sum(whole.values()) / max(epochs, 1 / batches),
        seconds_per_step=costs.phases,
        seconds=whole,
        evaluation_seconds=evaluation.seconds,
        data_seconds=loading,
        seconds_per_selection=costs.selection,
        peak_memory=peak,
        budget=seconds,
        epochs_in_budget=None if fitting is None else fitting / batches,
        test_images=evaluation.images,
        seconds_per_image=evaluation.per_image,
        unknown=evaluation.unknown,
    )


def _evaluation(recipe: Recipe, images: build.Data, trainer: Trainer) -> Evaluated:
    """Returns about what the evaluation takes."""
    _, height, width = images.test.shape
    each = seconds_of_pass(trainer)
    rows, _ = sample(images.test.labels, recipe.evaluation.limit)
    weights = len(recipe.evaluation.checkpoints) if images.validation else 1
    total, per_image, unknown = 0.0, {}, []
    for key, attack in recipe.evaluation.build(recipe.threat).items():
        passes = attack.passes(len(images.test.classes), (height, width))
        if passes is None:
            unknown.append(attack.title)
        else:
            per_image[key] = weights * SURVIVING * passes * each
            total += min(len(rows), attack.limit or len(rows)) * per_image[key]
    return Evaluated(len(images.test), total, per_image, unknown)


def _forget_peak(work: Session) -> None:
    """Has the memory that was used so far count no longer, where the system can do that."""
    if work.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(work.device)
    elif sys.platform == "linux":
        try:
            _HIGH_WATER[1].write_text("5")
        except OSError:  # then it is the most since the process began
            return


def _peak(work: Session) -> int:
    """Returns the most memory that was used, in bytes."""
    if work.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(work.device))
    if sys.platform == "linux":
        for line in _HIGH_WATER[0].read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
