"""Measures what a run costs on this machine and restores the state from before.

The steps are steps of training, at moments spread over the run, as what a method does may depend on them; selection and
callbacks work on parts of their images. Afterwards every state is put back as a resumed run would have it, so that a
run that has been measured trains as one that has not.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from robustcords.data.images import Images
from robustcords.data.split import sample
from robustcords.engine.modes import buffers_kept, evaluation_mode, in_float32, modes_kept
from robustcords.losses.context import Moment
from robustcords.rng import generator
from robustcords.runtime import collectives
from robustcords.runtime.progress import Display
from robustcords.runtime.stopwatch import TRAINING
from robustcords.selection.selector import Subset, SubsetSelector
from robustcords.storage.checkpoint import Checkpoints, as_kept, restore_parts
from robustcords.training.callbacks.base import Callback, EpochEnd, after_epoch
from robustcords.training.costs import Calendar, Costs
from robustcords.training.state import Progress, check_weights

if TYPE_CHECKING:
    from robustcords.training.trainer import Trainer

WARM_UP, FEWEST, ROUND = 3, 6, 3
"""Steps that are not counted, as kernels are chosen and caches filled; how many are at least; asked after so many."""
IMAGES = 256
"""How many images callbacks are measured on."""
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples modulo 1 are spread evenly, however many there are


def measure(trainer: Trainer, seconds: float, epochs: Callable[[float], float]) -> Costs:
    """Returns what a run of this trainer costs; all processes call it, and get the main process's figures.

    Args:
        trainer: before its first step; left as it is.
        seconds: to measure steps for, at least; there are `FEWEST` in any case.
        epochs: the length of the run, given the seconds of a batch.
    """
    with _undone(trainer):
        steps = _steps(trainer, seconds, epochs)
        callbacks = {each.name: _callback(trainer, each) for each in trainer.callbacks}
    # From the states as they are now, as the files of a first checkpoint have them.
    selection = _selection(trainer, trainer.selector) if trainer.selector else 0.0
    costs = replace(steps, selection=selection, callbacks=callbacks, checkpoint=_checkpoint(trainer))
    return collectives.decide_together(lambda: costs)


def calendar(trainer: Trainer) -> Calendar:
    """Returns what comes when in a trainer's run."""
    every, selector, skips = trainer.settings.checkpoint_every, trainer.selector, trainer.subsets.skips
    return Calendar(
        trainer.length.batches,
        selects=selector.selects if selector else lambda epoch: False,
        due=lambda epoch, last: [
            each.name for each in trainer.callbacks if not skips(epoch) and each.due(epoch, last=last)
        ],
        checkpoint_every=every if isinstance(every, int) else None,
        checkpoint_seconds=every.total_seconds() if isinstance(every, timedelta) else math.inf,
    )


def seconds_of_pass(trainer: Trainer) -> float:
    """Returns what a forward and a backward pass takes an image in evaluation: in float32, by the image alone."""
    x, _ = trainer.train.first(IMAGES // 2, trainer.device)
    watch = trainer.stopwatch
    with evaluation_mode(trainer.model), in_float32(trainer.inference, trainer.device) as network:
        for number in range(3):
            if number == 1:  # the first one is a warm-up
                start = watch.seconds()["total"]
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(network(leaf).sum(), leaf)
    return (watch.seconds()["total"] - start) / 2 / len(x)


@contextmanager
def _undone(trainer: Trainer) -> Iterator[None]:
    """Gives everything that training changes back as it was."""
    states = as_kept({name: part.state_dict() for name, part in trainer.parts().items()})
    progress, trainer.progress = trainer.progress, Progress()
    callbacks, trainer.callbacks = trainer.callbacks, [each for each in trainer.callbacks if each.measurable]
    with modes_kept(trainer.model), buffers_kept(trainer.model):
        try:
            yield
        finally:
            trainer.callbacks = callbacks
            restore_parts(trainer.parts(), states)
            trainer.optimizer.zero_grad()
            trainer.progress = progress


def _steps(trainer: Trainer, seconds: float, epochs: Callable[[float], float]) -> Costs:
    """Returns the costs of a step, by phase."""
    order = torch.randperm(len(trainer.train), generator=generator(trainer.seed, "measuring"))
    rows = order[: trainer.subsets.usual].sort().values
    subset = Subset(rows, torch.ones(len(rows)))
    batches = trainer.loader.order(0, subset)
    if trainer.schedule:
        trainer.schedule.set_rates(trainer.optimizer, trainer.peak_lrs, 0.0, 1.0)  # the first rate: none diverges

    def step(number: int, length: float) -> None:
        progress = number * _GOLDEN % 1
        # Step 0 of an epoch is watched more closely than others are, and so takes longer.
        moment = Moment(int(progress * length), number and 1 + number % len(batches), progress, length)
        trainer.take_step(batches[number % len(batches)], subset, moment, 0.5)
        if trainer.stopping:
            raise trainer.stopping

    def clock() -> dict[str, float]:
        trainer.stopwatch.begin("logging")
        return trainer.stopwatch.seconds()

    phases = (*TRAINING, "logging")
    each: dict[str, float] = {}
    with trainer.session.display.task("measuring steps") as update:
        for number in range(WARM_UP):
            update(number, WARM_UP + FEWEST)
            step(number, 1.0)
        start, taken, length, enough = clock(), 0, 1.0, False
        while not enough:
            for _ in range(ROUND):
                step(WARM_UP + taken, length)
                taken += 1
            now = clock()
            each = {phase: (now[phase] - start[phase]) / taken for phase in phases}
            # On all processes the main one's clock, so that they take the same steps.
            spent, of_step = collectives.sum_over(
                [value * collectives.is_main() for value in (now["total"] - start["total"], sum(each.values()))],
                trainer.device,
            )
            length, enough = max(1.0, epochs(of_step)), taken >= FEWEST and spent >= seconds
            update(WARM_UP + taken, WARM_UP + max(FEWEST, math.ceil(seconds / spent * taken) if spent else taken))
    around = time.perf_counter()
    trainer.loader.order(0, subset)
    check_weights(trainer.model, "while measuring", trainer.run)
    each["logging"] += (time.perf_counter() - around) / len(batches)
    return Costs(sum(each.values()), phases=each)


def _callback(trainer: Trainer, callback: Callback) -> float:
    """Returns what one call of a callback after an epoch takes; of one with many images, from a part of them."""
    images, factor = getattr(callback, "images", None), 1.0
    if isinstance(images, Images) and len(images) > IMAGES:
        callback = copy.copy(callback)
        rows, _ = sample(images.labels, IMAGES)
        vars(callback)["images"] = images.subset(rows)
        factor = len(images) / len(rows)
    end = EpochEnd(
        0,
        last=True,
        model=trainer.model,
        result=trainer.evaluated,
        seed=trainer.seed,
        autocast=trainer.session.watched,
        save_weights=lambda _: None,
        display=Display(visible=False),
    )
    for _ in range(1 + trainer.settings.compile):  # a compiled model's first passes in a new mode compile it again
        start = time.perf_counter()
        after_epoch([callback], end)
    return factor * (time.perf_counter() - start)


def _selection(trainer: Trainer, selector: SubsetSelector) -> float:
    """Returns what a selection takes, from selections on an eighth and a quarter of the images, or on all of few.

    A strategy that uses no model takes next to nothing, and may not know parts of the images, as a file of numbers.
    """
    if not selector.strategy.uses_model:
        return 0.0
    few = 20 * len(trainer.train.classes) + 2 * trainer.settings.batch_size

    def seconds(parts: int) -> float:
        with trainer.inference.under(trainer.session.watched) as model:
            for _ in range(1 + trainer.settings.compile):  # as for callbacks
                small = selector.on_part(parts)
                start = time.perf_counter()
                small.select(0, model)
            return time.perf_counter() - start

    if len(trainer.train) < 8 * few:
        return seconds(1)
    eighth, quarter = seconds(8), seconds(4)
    # Attacking the images takes time in proportion to them; a solver may take up to the cube.
    growth = min(max(math.log2(quarter / eighth), 1.0), 3.0)
    return float(quarter * 4**growth)


def _checkpoint(trainer: Trainer) -> float:
    """Returns what writing a checkpoint takes."""
    if not collectives.is_main():
        return 0.0
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        Checkpoints(Path(folder)).save(0, trainer.state_dict())
        return time.perf_counter() - start
