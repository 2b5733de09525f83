"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from robustcords.data.augmentations.base import Augmentation
from robustcords.data.images import Images, check_images
from robustcords.engine import contracts
from robustcords.engine.convolution import sound_convolutions
from robustcords.engine.inference import Inference
from robustcords.engine.memory_format import lay_out
from robustcords.engine.modes import torch_seeded
from robustcords.errors import Interrupted, UserError
from robustcords.losses.context import Moment
from robustcords.methods.base import Batch, Method, StepReport
from robustcords.rng import derive
from robustcords.runtime import collectives
from robustcords.runtime.accelerator import compile_model, start
from robustcords.runtime.progress import epoch_line
from robustcords.runtime.session import Session
from robustcords.runtime.stopwatch import TRAINING, Stopwatch
from robustcords.runtime.trackers import figures
from robustcords.selection.selector import Subset, SubsetSelector
from robustcords.storage.checkpoint import as_kept, belonging, restore_parts
from robustcords.storage.run_directory import RunDirectory
from robustcords.storage.state_check import refuse_grown, refuse_unkeepable
from robustcords.training.averaging import Averaging
from robustcords.training.callbacks.base import Callback, EpochEnd, after_epoch, after_step
from robustcords.training.config import TrainConfig
from robustcords.training.length import Length
from robustcords.training.loader import BatchLoader
from robustcords.training.optimizers import rates, trainable
from robustcords.training.rehearsal import Rehearsal
from robustcords.training.schedules import Schedule
from robustcords.training.state import PARTS, TAKEN, Progress, check_epoch, check_step, check_weights, upgraded
from robustcords.training.step import LoopStep
from robustcords.training.subsets import EpochSubsets


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
        settings: epochs or a budget, batch size and so on.
        schedule: the learning rate over the run; None keeps it.
        selector: chooses each epoch's subset; None trains on everything.
        augmentation: changes each batch's images at random, such as by crops and flips; None leaves them.
        callbacks: called after steps and epochs, such as `robustcords.Validation`; each has a name of its own.
        seed: of every random draw.
        run: where checkpoints, metrics and weights go; None keeps nothing. May be set until `fit` is called.
        session: processes, device, precision, display, and what may stop the run; None for one process that is silent.

    Raises:
        UserError: ``train`` is not `Images`, a batch cannot be divided over the processes and accumulation steps, the
            optimizer is not the model's, or the model does not do what training, selection or evaluation asks of it.
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
        augmentation: Augmentation | None = None,
        callbacks: Sequence[Callback] = (),
        seed: int = 0,
        run: RunDirectory | None = None,
        session: Session | None = None,
    ) -> None:
        check_images("train", train)
        self.session = session or Session(start(settings.precision, settings.accumulation))
        self.accelerator = self.session.accelerator
        self.accelerator.gradient_accumulation_steps = settings.accumulation
        self.method, self.schedule, self.selector, self.callbacks = method, schedule, selector, callbacks
        self.train, self.seed, self.device = train, seed, self.session.device
        self.run = run or RunDirectory.nowhere()
        self.peak_lrs = rates(optimizer)
        if selector:
            selector.bind(
                train,
                loss=method.loss,
                attack=method.attack,
                epochs=settings.epochs or 0,
                batch_size=settings.batch_size,
                seed=seed,
                lr=self.peak_lrs[0],
                augment=augmentation,
            )
        self.subsets = EpochSubsets(selector, train)
        self.loader = BatchLoader(
            train, settings.batch_size, augmentation, seed=seed, device=self.device, window=settings.shuffle_window
        )
        for size in self.subsets.sizes():
            self.loader.check(size, settings.accumulation)
        trainable(model, optimizer)
        contracts.distinct([callback.name for callback in callbacks], TAKEN)
        written = [("optimizer", optimizer), *method.parts().items(), *(("callback", each) for each in callbacks)]
        for kind, part in written:
            refuse_unkeepable(f"{kind} {contracts.title(part)}", part)
        method.prepare(train, self.device)
        # In place and before it is wrapped: what Accelerate prepares has its final layout, device and name.
        self.model = lay_out(model, self.device, "contiguous")
        self.settings = self.rehearsed(settings)
        if settings.compile:
            compile_model(self.model)
        self.inference = Inference(self.model, self.accelerator.autocast, replay=bool(settings.cuda_graphs))
        self.averaging = Averaging(self.model, settings.averaging) if settings.averaging else None
        self.stopwatch, self.progress = Stopwatch(self.device), Progress()
        self.length = Length(settings, self.loader.batches(self.subsets.usual))
        self.step = LoopStep(
            self.model,
            method,
            optimizer,
            self.accelerator,
            self.settings,
            inference=self.inference,
            phase=self.stopwatch.begin,
            seed=seed,
        )
        self.optimizer = self.step.optimizer
        self.stopping: Interrupted | None = None
        self.saving, self.saved = False, time.monotonic()
        self.history: list[dict[str, Any]] = []

    def rehearsed(self, settings: TrainConfig) -> TrainConfig:
        """Tries what training will ask of the model and the loss; returns settings with the layout that it runs in.

        Raises:
            UserError: they do not do it.
        """
        sizes = {
            part for size in self.subsets.sizes() for part in self.loader.micro_batches(size, settings.accumulation)
        }
        rehearsal = Rehearsal(self.train, self.device, self.accelerator.autocast, sorted(sizes))
        self.loader.memory_format = rehearsal.settle(self.model, settings.memory_format)
        self.subsets.check(Inference(self.model, self.accelerator.autocast, replay=False), self.method.loss)
        return settings.model_copy(update={"memory_format": self.loader.memory_format})

    @sound_convolutions()
    def fit(self) -> list[dict[str, Any]]:
        """Trains to the end, from the newest checkpoint if the run has one; returns the metrics of each epoch.

        They are the lines of ``metrics.jsonl`` (docs/run-directory.md). If the run was resumed, only its main process
        has those of the epochs before.

        Raises:
            Interrupted: a signal asked to stop; a checkpoint has been written.
            RunError: the loss or a weight is not finite.
            UserError: a budget is too short.
        """
        self.stopwatch.restart("checkpoint")
        self.model.train()
        self.optimizer.zero_grad()
        self.restore()
        self.length.begin(self)
        while not self.ended(epoch := self.progress.epoch):
            if not self.subsets.skips(epoch):
                subset = self.subset(epoch)
                images = self.train_epoch(epoch, subset)
                self.finish_epoch(epoch, subset, images)
            self.progress = Progress(epoch=epoch + 1, steps=self.progress.steps)
            if self.ended(epoch + 1) or self.settings.saves_after(epoch + 1):
                self.save_checkpoint()
        self.save_weights("last")
        return self.history

    def ended(self, epochs: int) -> bool:
        """Returns whether training is over when so many epochs are."""
        return self.length.ended(epochs, self.progress.steps)

    def train_epoch(self, epoch: int, subset: Subset) -> int:
        """Takes the epoch's remaining steps, or as many as the run has left; returns how many images it trained on.

        Raises:
            RunError: a weight is not finite afterwards.
        """
        self.stopwatch.begin("data")
        batches = self.loader.order(epoch, subset)
        self.loader.read_ahead(batches[self.progress.step :], subset, epoch)
        with self.session.display.task(self.length.label(self.progress)) as update, self.session.profiler as profiler:
            for step in range(self.progress.step, len(batches)):
                self.length.extend(self, len(batches) - step)
                if self.ended(epoch):
                    break
                passed, epochs = self.length.passed(self.progress, step / len(batches)), self.length.epochs
                if self.schedule:
                    self.schedule.set_rates(self.optimizer, self.peak_lrs, passed, epochs)
                moment = Moment(epoch, step, passed / epochs, epochs)
                self.take_step(batches[step], subset, moment, (step + 1) / len(batches))
                profiler.step()
                update(step + 1, len(batches), f"loss {self.progress.mean_loss:.3f}")
                self.stop_or_save()
        check_weights(self.model, self.progress.place, self.run)
        return sum(map(len, batches[: self.progress.step]))

    def take_step(self, positions: Tensor, subset: Subset, moment: Moment, part: float) -> None:
        """Trains on a global batch.

        Args:
            positions: of its examples in the subset.
            subset: of the epoch.
            moment: of the step.
            part: of the epoch that is over after it.
        """
        self.stopwatch.begin("data")
        self.train_step(self.loader.load(positions, subset, moment.epoch), moment)
        self.subsets.observe(subset.indices[positions], self.step.values)
        if self.averaging:
            self.stopwatch.begin("averaging")
            self.averaging.update(self.length.share(self.progress, part))
        self.stopwatch.begin("logging")

    def train_step(self, batch: Batch, moment: Moment) -> None:
        """Has the method train on a batch, and adds up what the metrics need.

        Raises:
            RunError: the loss is not finite.
            UserError: a checkpoint could not keep a state that has come up.
        """
        self.step.begin(moment)
        with torch_seeded(derive(self.seed, "dropout", self.progress.steps, collectives.rank()), self.device):
            report = self.method.step(self.step, batch)
        source = f"method {contracts.title(self.method)}: step"
        counts = contracts.counts(source, contracts.instance(source, report, StepReport).counts)
        self.step.end()
        share, norm = self.step.share, float(self.step.gradient_norm)
        self.stopwatch.begin("communication")
        overdue = self.settings.saves_within(time.monotonic() - self.saved)
        values = [share, norm, overdue, *self.session.interruption.reasons(), *counts.values()]
        loss, norm, due, signalled, expired, *totals = collectives.sum_over(values, device=self.device)
        collectives.share_buffers(self.model)
        if not self.step.skipped:
            check_step(loss, norm, batch.noise.keys, self.progress, self.run)
        self.progress.add(loss, batch.total, dict(zip(counts, totals, strict=True)), skipped=self.step.skipped)
        if moment.step == 0:
            refuse_grown(self.parts())
        after_step(self.callbacks, loss, self.model, thorough=moment.step == 0)
        self.stopping = self.session.interruption.verdict((signalled, expired))
        self.saving = due > 0

    def subset(self, epoch: int) -> Subset:
        """Returns what the epoch trains on, selecting it where it is time to, and keeps a record of selections."""
        self.stopwatch.begin("selection")
        passed, begun = self.length.share(self.progress, 0.0), self.progress.step > 0
        watched = (self.subsets.proxy or self.inference).under(self.session.watched)
        with self.session.restartable("selection", self.write_checkpoint) as on_batch, watched as model:
            subset, selected = self.subsets.of(epoch, model, on_batch, progress=passed, begun=begun)
            self.loader.check(len(subset.indices), self.settings.accumulation)  # a strategy's sizes may vary
            if selected:
                self.run.save_selection(epoch, self.train.numbers[subset.indices], subset.weights)
        return subset

    def finish_epoch(self, epoch: int, subset: Subset, images: int) -> None:
        """Calls back, and writes the epoch's line of metrics, of so many images that it trained on."""
        self.stopwatch.begin("logging")
        check_epoch(self.progress, self.run)
        row: dict[str, Any] = {
            "epoch": epoch,
            "progress": self.length.share(self.progress, 1.0),
            "train_loss": self.progress.mean_loss,
            "lr": rates(self.optimizer)[0],
            "subset_size": len(subset.indices),
            "skipped_steps": self.progress.skipped,
        }
        row |= self.call_back(epoch)
        self.stopwatch.begin("logging")
        seconds = self.stopwatch.lap()
        self.length.add(seconds)
        row |= {
            "images_per_second": images / sum(seconds[phase] for phase in TRAINING),
            "seconds": seconds,
            "counts": self.progress.counts or None,
            "selection": subset.record(epoch, self.train),
        }
        self.run.add_row(row)
        self.history.append(row)
        self.accelerator.log(figures(row), step=epoch)
        self.session.display.say(epoch_line(self.history, self.length.label(self.progress)))

    def call_back(self, epoch: int) -> dict[str, Any]:
        """Returns what the callbacks note of an epoch."""
        validations: list[Mapping[str, float]] = []
        end = EpochEnd(
            epoch,
            last=self.ended(epoch + 1),
            model=self.model,
            result=self.evaluated,
            seed=self.seed,
            autocast=self.session.watched,
            save_weights=self.save_weights,
            display=self.session.display,
            validated=validations.append,
        )
        self.stopwatch.begin("validation")
        before = {callback.name: as_kept(callback.state_dict()) for callback in self.callbacks}
        with self.session.interruption.begun_again(lambda: self.write_checkpoint(before)):
            noted = after_epoch(self.callbacks, end)
        for result in validations:  # only now: if stopped above, a resumed run repeats it
            self.method.effort.on_validation(result)
        return noted

    @property
    def evaluated(self) -> nn.Module:
        """The model whose weights are the result: the averaged one where there is averaging."""
        return self.averaging.model if self.averaging else self.model

    def save_weights(self, which: str) -> None:
        """Writes the ``best`` or the ``last`` weights."""
        self.run.save_weights(which, self.evaluated.state_dict())

    def save_checkpoint(self) -> None:
        """Writes a checkpoint, at a point that all processes come to."""
        self.write_checkpoint()
        collectives.barrier()
        self.saved = time.monotonic()

    def write_checkpoint(self, before: dict[str, Any] | None = None) -> None:
        """Writes everything that the rest of the run depends on.

        Args:
            before: states that parts had before work that a resumed run begins again; None for those they have now.
        """
        self.stopwatch.begin("checkpoint")
        self.run.save_checkpoint(self.progress.steps, lambda: self.state_dict() | (before or {}))

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
        own: list[Any] = [self.model, self.optimizer.optimizer, self.accelerator.scaler, self.averaging]
        own += [self.selector, self.length if self.length.budget else None]
        parts = {name: part for name, part in zip(PARTS, own, strict=True) if part is not None}
        return parts | self.method.parts() | {callback.name: callback for callback in self.callbacks}

    def state_dict(self) -> dict[str, Any]:
        """Returns all that the rest of the run depends on, as `checkpoint.pack` takes it."""
        states = {name: part.state_dict() for name, part in self.parts().items()}
        around = {"seconds": self.stopwatch.seconds(), "data": self.train.fingerprint()}
        return {"progress": asdict(self.progress), **around, **states}

    def restore(self) -> None:
        """Resumes from the run's newest whole checkpoint, if it has one.

        Raises:
            UserError: it is another run's, or of other data.
        """
        if (latest := self.run.checkpoints.latest()) is None:
            self.run.keep_rows([])  # a run that died before its first checkpoint may have written some
            self.stopwatch.add({"selection": self.subsets.proxy_seconds})
            return
        path, state = latest
        if state.get("data", data := self.train.fingerprint()) != data:
            raise UserError(f"{path} was trained on other data: their labels are not those of data.path")
        with belonging(path):
            state = upgraded(state)
            self.progress = Progress(**state["progress"])
            restore_parts(self.parts(), state)
            self.stopwatch.add(state["seconds"])
        done = [epoch for epoch in range(self.progress.epoch) if not self.subsets.skips(epoch)]
        self.history = self.run.keep_rows(done)
        self.session.display.say(f"resumed from {path}")
