"""Adversarial training: attack the batch, then minimise the loss at the adversarial examples."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from robustcords.config.requirements import STEPS_TO_VARY
from robustcords.methods.base import Batch, Method, Step, StepReport
from robustcords.methods.efforts.batch import attack_batch


class AdversarialTraining(Method):
    """Attacks a batch, each example as the effort plans, and takes one optimizer step (Madry et al. 2018).

    Args:
        loss: what is minimised, and what the attack maximises.
        attack: makes the adversarial examples.
        effort: how hard each example is attacked; None for all alike.
        options: none.

    Example:
        >>> method = AdversarialTraining(SAT(), PGD(ThreatModel(epsilon=8 / 255)))
    """

    requires: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = Method.provides | {STEPS_TO_VARY}

    def step(self, step: Step, batch: Batch) -> StepReport:
        """Attacks the whole batch, then goes through its micro-batches."""
        views, counts = self.views(step, batch)
        step.phase("update")
        for rows in step.micro_batches(batch):
            step.backward(step.losses(views, batch, rows), batch, rows)
        step.optimizer_step()
        return StepReport(counts)

    def views(self, step: Step, batch: Batch) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Returns the images of each of the loss's views, and the number of examples of each kind."""
        if "adversarial" not in self.loss.views:
            return {"clean": batch.x}, {}
        step.phase("attack")
        with step.attacking():
            attacked = attack_batch(
                step.inference,
                batch.x,
                batch.y,
                batch.noise,
                attack=self.attack,
                loss=self.loss,
                effort=self.effort,
                moment=step.moment,
                geometry=batch.geometry,
            )
        return {"clean": batch.x, "adversarial": attacked.images}, attacked.counts
