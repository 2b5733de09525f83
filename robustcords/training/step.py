"""One optimizer step for a method, on any number of processes and micro-batches and in any precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from robustcords.engine import contracts
from robustcords.engine.inference import Inference
from robustcords.engine.modes import buffers_kept, modes_kept
from robustcords.engine.training_graphs import TrainingReplays, training_replays
from robustcords.errors import UserError
from robustcords.losses.base import Loss
from robustcords.losses.check import check_labels
from robustcords.losses.context import LossContext, Moment
from robustcords.methods.base import Batch, Method, Step
from robustcords.rng import Noise, derive
from robustcords.runtime import collectives
from robustcords.training.config import TrainConfig
from robustcords.training.sync_batchnorm import SyncBatchNorm


class LossPass(nn.Module):
    """A model and a loss, called as one module: distributed wrappers expect one forward of a step.

    Args:
        model: shared, not copied.
        loss: whose ``forward`` runs the model.
        replays: the model from recorded passes, for the losses that only call it; None for the model itself.
        sync_batchnorm: whether BatchNorm's statistics are those of all processes' images.
    """

    def __init__(self, model: nn.Module, loss: Loss, *, replays: TrainingReplays | None, sync_batchnorm: bool) -> None:
        super().__init__()
        self.model, self.loss, self.sync_batchnorm = model, loss, sync_batchnorm
        self.replays = replays if type(loss).forward is Loss.forward else None

    def forward(self, views: Mapping[str, Tensor], y: Tensor, context: LossContext) -> Tensor:
        """Returns the loss (b,) of every example; see `robustcords.losses.base.Loss.forward`."""
        source = f"loss {contracts.title(self.loss)}"
        if self.replays:
            self.replays.begin()
        with SyncBatchNorm() if self.sync_batchnorm else nullcontext():
            found = self.loss.at(context.moment).forward(self.replays or self.model, views, y, context)
        value = contracts.numbers(source, found, y.shape[:1])
        return contracts.differentiable(source, value, list(self.model.parameters()))


class LoopStep(Step):
    """The loop's own `Step`, the same object for all batches.

    Args:
        model: what is trained, before it is wrapped.
        method: whose loss is minimised, and whose attack's threat model that loss may know.
        optimizer: of the model's parameters.
        accelerator: wraps model and optimizer.
        settings: accumulation and clipping.
        inference: the model as attacks run it.
        phase: counts the time from its call on, by a phase's name.
        seed: of the run.

    Attributes:
        optimizer: wrapped.
        gradient_norm: before it was clipped; the largest of the batch's steps.
        skipped: whether a step was not taken, as gradients in float16 had overflown.
    """

    inference: Inference

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        settings: TrainConfig,
        *,
        inference: Inference,
        phase: Callable[[str], None],
        seed: int,
    ) -> None:
        self.model, self.inference, self.accelerator, self.settings = model, inference, accelerator, settings
        self.method, self._phase, self.seed = method, phase, seed
        alone = collectives.world_size() == 1
        replays = training_replays(model, accelerator.device) if settings.cuda_graphs == "all" and alone else None
        passes = LossPass(model, method.loss, replays=replays, sync_batchnorm=settings.sync_batchnorm and not alone)
        self.passes, self.optimizer = accelerator.prepare(passes, optimizer)
        self.begin(Moment(0, 0, 0.0))

    def begin(self, moment: Moment) -> None:
        """Starts a batch."""
        self.moment = moment
        self.skipped = False
        self.gradient_norm, self._share, self._steps = torch.zeros(()), torch.zeros(()), 0
        self._values: Tensor | None = None

    def end(self) -> None:
        """Checks that the batch was trained on.

        Raises:
            UserError: nothing was differentiated, or no step taken.
        """
        missing = "backward(losses, batch, rows)" if self._values is None else "optimizer_step()"
        if self._values is None or not self._steps:
            raise UserError(
                f"method {contracts.title(self.method)}: step returned without a call of step.{missing}, and so has "
                "trained nothing"
            )

    @property
    def share(self) -> float:
        """This process's share of the batch's weighted mean loss, averaged over the steps that were taken."""
        return float(self._share) / max(1, self._steps)

    @property
    def values(self) -> Tensor:
        """The loss (b,) of every example of the batch, in the last pass that it took part in; NaN where in none."""
        assert self._values is not None
        return self._values

    def phase(self, name: str) -> None:
        """Counts the time from here on."""
        self._phase(name)

    @contextmanager
    def attacking(self) -> Iterator[None]:
        """Folds the network, and gives its modes back as they were."""
        with self.accelerator.autocast(), self.inference.folded(), modes_kept(self.model):
            yield

    @contextmanager
    def without_statistics(self) -> Iterator[None]:
        """Gives buffers and the reported losses back as they were."""
        share, values = self._share, None if self._values is None else self._values.clone()
        with buffers_kept(self.model):
            yield
        self._share, self._values = share, values

    def micro_batches(self, batch: Batch) -> Iterator[slice]:
        """Yields rows; gradients are exchanged between processes after the last of them alone."""
        self.accelerator.step = 0  # a method may have left an earlier batch before its end
        for rows in batch.parts(self.settings.accumulation):
            with self.accelerator.accumulate(self.passes):
                yield rows

    def losses(self, views: Mapping[str, Tensor], batch: Batch, rows: slice) -> Tensor:
        """Returns the loss (b,) of some rows.

        Raises:
            UserError: a view that the loss needs is not there, or is not of the batch.
        """
        loss, moment = self.method.loss, self.moment
        for name in loss.views:
            if name not in views or len(views[name]) != len(batch.y):
                found = f"of {len(views[name])} images" if name in views else "missing"
                raise UserError(
                    f"method {contracts.title(self.method)}: the view {name!r} of {len(batch.y)} images, which loss "
                    f"{contracts.title(loss)} needs, is {found}"
                )
        check_labels("loss", loss, batch.y)
        noise = Noise(derive(self.seed, "loss", moment.epoch, moment.step), batch.noise.keys[rows])
        context = LossContext(self.method.attack.threat, moment, noise)
        values: Tensor = self.passes({name: x[rows] for name, x in views.items()}, batch.y[rows], context)
        return values

    def backward(self, losses: Tensor, batch: Batch, rows: slice) -> None:
        """Adds up gradients of ``sum w_i loss_i / sum w_i`` over the global batch."""
        share = (losses * batch.weights[rows]).sum() / batch.total
        # Accelerate divides by the accumulation steps and averages over processes; the sums here need neither.
        self.accelerator.backward(share * self.settings.accumulation * collectives.world_size())
        self._share = self._share + share.detach()
        if self._values is None:
            self._values = torch.full((len(batch.y),), torch.nan, device=losses.device)
        self._values[rows] = losses.detach().float()

    def optimizer_step(self) -> None:
        """Clips, steps, and sets gradients to zero."""
        if not self.accelerator.sync_gradients:
            raise RuntimeError("optimizer_step comes after the last micro-batch of step.micro_batches(batch)")
        limit = self.settings.clip_gradient or math.inf
        norm = self.accelerator.clip_grad_norm_(self.passes.parameters(), limit)
        self.gradient_norm = torch.maximum(self.gradient_norm.to(norm), norm)
        self.optimizer.step()
        self.skipped |= self.accelerator.optimizer_step_was_skipped
        self.optimizer.zero_grad()
        self._steps += 1
