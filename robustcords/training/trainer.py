"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from robustcords.attacks.base import Attack
from robustcords.data.images import Images
from robustcords.engine import contracts
from robustcords.engine.convolution import sound_convolutions
from robustcords.engine.inference import Inference
from robustcords.engine.memory_format import lay_out
from robustcords.engine.modes import torch_seeded
from robustcords.errors import Interrupted, UserError
from robustcords.evaluation.evaluate import robust_accuracy
from robustcords.evaluation.majority import validation_warning
from robustcords.losses.check import EXAMPLES, check_loss
from robustcords.losses.context import Moment
from robustcords.methods.base import Batch, Method
from robustcords.rng import derive
from robustcords.runtime import collectives
from robustcords.runtime.accelerator import compile_model, start
from robustcords.runtime.interruption import Interruption
from robustcords.runtime.profiler import Profiler
from robustcords.runtime.progress import Display, epoch_line
from robustcords.runtime.stopwatch import TRAINING, Stopwatch
from robustcords.selection.selector import Subset, SubsetSelector, everything
from robustcords.storage.checkpoint import belonging, restore_parts
from robustcords.storage.run_directory import RunDirectory
from robustcords.training.averaging import Averaging
from robustcords.training.callbacks.base import Observer, notes
from robustcords.training.config import TrainConfig
from robustcords.training.loader import BatchLoader
from robustcords.training.optimizers import trainable
from robustcords.training.rehearsal import Rehearsal
from robustcords.training.schedules import Schedule
from robustcords.training.state import Progress, check_weights, not_finite
from robustcords.training.step import LoopStep

PARTS = ("model", "optimizer", "scaler", "averaging", "selector", "method")
"""What a checkpoint calls the trainer's own parts."""


class Trainer:
    """Trains a model on adversarial examples, on all the data or on subsets that a selector chooses.

    Nothing here depends on which loss, attack, strategy or model it is given. Every random draw is keyed by (seed,
    purpose, epoch, example), so the same call gives the same run, resumed or not, on one process or several (up to the
    rounding of sums, and BatchNorm's statistics, which are those of each process's share).

    Training begins with ``model.train()``, whatever mode the model is given in, and drops gradients that it has. A part
    that is to stay in eval mode, such as a BatchNorm, overrides ``train``; frozen parameters stay frozen.

    Args:
        model: gives logits of images in [0, 1].
        method: what a step does with a batch, and the loss that it minimises.
        train: the training split.
        optimizer: over the model's parameters; its learning rates are the peak ones.
        settings: epochs, batch size and so on.
        schedule: the learning rate over the run; None keeps it.
        selector: chooses each epoch's subset; None trains on everything.
        validation: the validation split, which `best` is chosen on.
        validation_attack: the attack that it is chosen with.
        crop: pixels of padding for random crops.
        flip: whether to flip at random.
        seed: of every random draw.
        accelerator: the processes, device and precision; None for one with the settings' precision.
        run: where checkpoints, metrics and weights go; None keeps nothing.
        display: where progress is shown; None shows nothing.
        interruption: asked after each step whether to stop.
        profiler: records some steps; None records none.
        observers: look at the model after every epoch; each has a name of its own.

    Raises:
        UserError: a batch cannot be divided over the processes and accumulation steps, the optimizer is not the
            model's, or the model does not do what training, selection or evaluation asks of it.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        train: Images,
        optimizer: torch.optim.Optimizer,
        settings: TrainConfig,
        *,
        schedule: Schedule | None = None,
        selector: SubsetSelector | None = None,
        validation: Images | None = None,
        validation_attack: Attack | None = None,
        crop: int = 0,
        flip: bool = False,
        seed: int = 0,
        accelerator: Accelerator | None = None,
        run: RunDirectory | None = None,
        display: Display | None = None,
        interruption: Interruption | None = None,
        profiler: Profiler | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.accelerator = accelerator or start(settings.precision, settings.accumulation)
        self.accelerator.gradient_accumulation_steps = settings.accumulation
        self.peak_lrs = [group["lr"] for group in optimizer.param_groups]
        self.method, self.schedule, self.selector = method, schedule, selector
        self.validation, self.validation_attack = validation, validation_attack
        self.train, self.seed, self.device = train, seed, self.accelerator.device
        loader = partial(BatchLoader, train, batch_size=settings.batch_size, seed=seed)
        self.loader = loader(crop=crop, flip=flip, device=self.device)
        for size in self.sizes():
            self.loader.check(size, settings.accumulation)
        trainable(model, optimizer)
        contracts.distinct([observer.name for observer in observers], (*PARTS, "adversary"))
        # In place and before it is wrapped: what Accelerate prepares has its final layout, device and name.
        self.model = lay_out(model, self.device, "contiguous")
        sizes = {part for size in self.sizes() for part in self.loader.micro_batches(size, settings.accumulation)}
        rehearsal = Rehearsal(train, self.device, self.accelerator.autocast, sorted(sizes))
        self.loader.memory_format = rehearsal.settle(model, settings.memory_format)
        self.settings = settings.model_copy(update={"memory_format": self.loader.memory_format})
        plain = Inference(model, self.accelerator.autocast, replay=False)
        if self.selector:
            self.selector.check(plain)
        if not self.selector or self.selector.loss is not method.loss:  # the selector has checked its own
            check_loss(method.loss, plain, *train.first(EXAMPLES, self.device))
        if settings.compile:
            compile_model(self.model)
        self.inference = Inference(self.model, self.accelerator.autocast, replay=settings.cuda_graphs)
        self.averaging = Averaging(self.model, settings.averaging) if settings.averaging else None
        self.run, self.display = run, display or Display(visible=False)
        self.interruption = interruption or Interruption()
        self.watched = self.interruption.watched(self.accelerator.autocast)
        self.profiler, self.observers = profiler or Profiler(), observers
        self.stopwatch, self.progress = Stopwatch(self.device), Progress()
        self.step = LoopStep(
            self.model,
            method.loss,
            optimizer,
            self.accelerator,
            settings,
            threat=method.attack.threat,
            inference=self.inference,
            stopwatch=self.stopwatch,
            seed=seed,
        )
        self.optimizer = self.step.optimizer
        self.stopping: Interrupted | None = None
        self.saving, self.saved = False, time.monotonic()

    @sound_convolutions()
    def fit(self) -> None:
        """Trains to the last epoch, from the newest checkpoint where the run has one.

        Raises:
            Interrupted: a signal asked to stop; a checkpoint has been written.
            RunError: the loss or a weight is not finite.
        """
        self.stopwatch.restart("checkpoint")
        self.model.train()
        self.optimizer.zero_grad()
        self.restore()
        while self.progress.epoch < self.settings.epochs:
            epoch = self.progress.epoch
            if self.selector is None or not self.selector.skips(epoch):
                subset = self.subset(epoch)
                self.train_epoch(epoch, subset)
                self.finish_epoch(epoch, subset)
            self.progress = Progress(epoch=epoch + 1, steps=self.progress.steps, best=self.progress.best)
            every = self.settings.checkpoint_every
            if epoch + 1 == self.settings.epochs or (isinstance(every, int) and (epoch + 1) % every == 0):
                self.save_checkpoint()
        self.save_weights("last")

    def sizes(self) -> list[int]:
        """Returns how many examples an epoch may have."""
        if self.selector is None:
            return [len(self.train)]
        return [self.selector.budget, *([len(self.train)] if self.selector.full_until else [])]

    def train_epoch(self, epoch: int, subset: Subset) -> None:
        """Takes the epoch's remaining steps.

        Raises:
            RunError: a weight is not finite afterwards.
        """
        self.stopwatch.begin("data")
        batches = self.loader.order(epoch, len(subset.indices))
        with self.display.task(f"epoch {epoch + 1}/{self.settings.epochs}") as update, self.profiler:
            for step in range(self.progress.step, len(batches)):
                self.stopwatch.begin("data")
                passed = epoch + step / len(batches)
                if self.schedule:
                    self.schedule.set_rates(self.optimizer, self.peak_lrs, passed, self.settings.epochs)
                moment = Moment(epoch, step, passed / self.settings.epochs)
                self.train_step(self.loader.load(batches[step], subset, epoch), moment)
                if self.averaging:
                    self.stopwatch.begin("averaging")
                    self.averaging.update((epoch + (step + 1) / len(batches)) / self.settings.epochs)
                self.stopwatch.begin("logging")
                self.profiler.step()
                update(step + 1, len(batches), f"loss {self.progress.mean_loss:.3f}")
                self.stop_or_save()
        check_weights(self.model, self.progress.place, self.run)

    def train_step(self, batch: Batch, moment: Moment) -> None:
        """Has the method train on a batch, and adds up what the metrics need.

        Minimises ``sum w_i loss_i / sum w_i`` over the global batch: all processes, all accumulation steps.

        Raises:
            RunError: the loss is not finite.
        """
        self.step.begin(moment)
        with torch_seeded(derive(self.seed, "dropout", self.progress.steps, collectives.rank()), self.device):
            counts = self.method.step(self.step, batch).counts
        share, norm = self.step.share, float(self.step.gradient_norm)
        self.stopwatch.begin("communication")
        values = [share, norm, self.checkpoint_is_due(), *self.interruption.reasons(), *counts.values()]
        loss, norm, due, signalled, overdue, *totals = collectives.sum_over(values, device=self.device)
        collectives.share_buffers(self.model)
        if self.step.skipped:
            self.progress.skipped += 1
        elif not (math.isfinite(loss) and math.isfinite(norm)):
            numbers = ", ".join(map(str, batch.noise.keys.tolist()))
            where = f"in epoch {self.progress.epoch}, step {self.progress.step} (training examples {numbers})"
            raise not_finite("a gradient is" if math.isfinite(loss) else "the loss is", where, self.run)
        else:
            self.progress.loss += loss * batch.total
            self.progress.weight += batch.total
        for kind, total in zip(counts, totals, strict=True):
            self.progress.counts[kind] = self.progress.counts.get(kind, 0) + int(total)
        self.progress.step += 1
        self.progress.steps += 1
        self.stopping = self.interruption.verdict((signalled, overdue))
        self.saving = due > 0

    def subset(self, epoch: int) -> Subset:
        """Returns what the epoch trains on, selecting it where it is time to, and keeps a record of selections."""
        if self.selector is None:
            return everything(len(self.train))
        if self.progress.step and epoch >= self.selector.full_until:  # interrupted, it goes on with what it had
            return self.selector.current or everything(len(self.train))
        before = self.selector.current
        self.stopwatch.begin("selection")
        with self.display.task("selection") as update, self.interruption.begun_again(self.write_checkpoint):

            def on_batch(done: int, total: int) -> None:
                update(done, total)
                self.interruption.check()

            model = Inference(self.model, self.watched, replay=self.settings.cuda_graphs)
            subset = self.selector.subset(epoch, model, on_batch)
            if self.run and self.selector.current is not before:
                self.run.save_selection(epoch, self.train.numbers[subset.indices], subset.weights)
        return subset

    def finish_epoch(self, epoch: int, subset: Subset) -> None:
        """Validates where it is time to, and writes the epoch's line of metrics."""
        self.stopwatch.begin("logging")
        if self.progress.skipped and not self.progress.weight:
            raise not_finite("the gradients of all steps were", f"in epoch {self.progress.epoch}", self.run)
        row: dict[str, Any] = {
            "epoch": epoch,
            "train_loss": self.progress.mean_loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "subset_size": len(subset.indices),
            "skipped_steps": self.progress.skipped,
        }
        due = (epoch + 1) % self.settings.validate_every == 0 or epoch + 1 == self.settings.epochs
        with self.interruption.begun_again(self.write_checkpoint):
            if due and self.validation and self.validation_attack:
                row["validation"] = self.validate(self.validation, self.validation_attack)
            self.stopwatch.begin("validation")
            row |= notes(self.observers, self.model, epoch, seed=self.seed, autocast=self.watched)
        if "validation" in row:  # only now: what a stop leaves above is done again
            self.method.effort.on_validation(row["validation"])
        self.stopwatch.begin("logging")
        seconds = self.stopwatch.lap()
        row |= {
            "images_per_second": len(subset.indices) / sum(seconds[phase] for phase in TRAINING),
            "seconds": seconds,
            "counts": self.progress.counts or None,
            "selection": subset.record(epoch, self.train),
        }
        if self.run:
            self.run.add_row(row)
        figures = {"train_loss": row["train_loss"], "lr": row["lr"], **row.get("validation", {})}
        self.accelerator.log(figures, step=epoch)
        self.display.say(epoch_line(row, self.settings.epochs))

    def validate(self, validation: Images, attack: Attack) -> dict[str, float]:
        """Returns clean and PGD accuracy on the validation split, and keeps the weights if they are the best yet."""
        self.stopwatch.begin("validation")
        clean, robust = robust_accuracy(self.evaluated, validation, attack, seed=self.seed, autocast=self.watched)
        if self.progress.best is None or robust > self.progress.best:
            self.progress.best = robust
            if text := validation_warning(clean, validation.labels):
                self.display.say_once("largest class", text)
            self.stopwatch.begin("checkpoint")
            self.save_weights("best")
        return {"clean": clean, "robust": robust}

    @property
    def evaluated(self) -> nn.Module:
        """The model whose weights are the result: the averaged one where there is averaging."""
        return self.averaging.model if self.averaging else self.model

    def save_weights(self, which: str) -> None:
        """Writes the ``best`` or the ``last`` weights."""
        if self.run:
            self.run.save_weights(which, self.evaluated.state_dict())

    def save_checkpoint(self) -> None:
        """Writes a checkpoint, at a point that all processes come to."""
        self.write_checkpoint()
        collectives.barrier()
        self.saved = time.monotonic()

    def write_checkpoint(self) -> None:
        """Writes everything that the rest of the run depends on."""
        self.stopwatch.begin("checkpoint")
        if self.run and self.run.writes:
            self.run.checkpoints.save(self.progress.steps, self.state_dict())

    def checkpoint_is_due(self) -> bool:
        """Returns whether it is time for a checkpoint within the epoch."""
        every = self.settings.checkpoint_every
        return isinstance(every, timedelta) and time.monotonic() - self.saved >= every.total_seconds()

    def stop_or_save(self) -> None:
        """Writes a checkpoint if it is time for one, and ends the run with one if any process has a reason to.

        Raises:
            Interrupted: a signal came, or the time is over.
        """
        if self.stopping or self.saving:
            check_weights(self.model, self.progress.place, self.run)
            self.save_checkpoint()
        if self.stopping:
            raise self.stopping

    def parts(self) -> dict[str, Any]:
        """Returns everything with a state of its own, by its name in a checkpoint."""
        own = (self.model, self.optimizer.optimizer, self.accelerator.scaler)
        others = (self.averaging, self.selector, self.method)
        found = dict(zip(PARTS, own + others, strict=True)) | {each.name: each for each in self.observers}
        return {name: part for name, part in found.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the rest of the run depends on, as `checkpoint.pack` takes it."""
        states = {name: part.state_dict() for name, part in self.parts().items()}
        around = {"seconds": self.stopwatch.seconds(), "data": self.train.fingerprint()}
        return {"progress": asdict(self.progress), **around, **states}

    def restore(self) -> None:
        """Goes on from the run's newest whole checkpoint, if it has one.

        Raises:
            UserError: it is another run's, or of other data.
        """
        if self.run is None:
            return
        found = self.run.checkpoints.latest()
        if found is None:
            self.run.keep_rows([])  # a run that died before its first checkpoint may have written some
            return
        path, state = found
        if "method" not in state and "adversary" in state:  # what 0.1 called it
            state["method"] = state.pop("adversary")
        if state.get("data", data := self.train.fingerprint()) != data:
            raise UserError(f"{path} was trained on other data: their labels are not those of data.path")
        with belonging(path):
            self.progress = Progress(**state["progress"])
            restore_parts(self.parts(), state)
            self.stopwatch.add(state["seconds"])
        skips = self.selector.skips if self.selector else lambda _: False
        self.run.keep_rows([epoch for epoch in range(self.progress.epoch) if not skips(epoch)])
        self.display.say(f"resumed from {path}")
