"""Adversarial training: attack the batch, then minimise the loss at what was found."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from robustcords.engine import contracts
from robustcords.methods.base import Batch, Method, Step, StepReport


class AdversarialTraining(Method):
    """Attacks a batch, all of it or each kind of example in its own way, and takes one step (Madry et al. 2018).

    Args:
        loss: what is minimised, and what the attack maximises.
        adversary: makes the adversarial examples; `robustcords.methods.efforts.bullet.BulletAdversary` is Bullet-Train.
        options: none.

    Example:
        >>> loss = SAT()
        >>> method = AdversarialTraining(loss, Adversary(PGD(ThreatModel(epsilon=8 / 255)), loss))
    """

    varies_effort = True

    def step(self, step: Step, batch: Batch) -> StepReport:
        """Attacks the whole batch, then goes through its micro-batches."""
        views, counts = self.views(step, batch)
        step.phase("update")
        for rows in step.micro_batches(batch):
            step.backward(step.losses(views, batch, rows), batch, rows)
        step.optimizer_step()
        return StepReport(counts)

    def views(self, step: Step, batch: Batch) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Returns the images of each view that the loss asks for, and how many of each kind were attacked."""
        if "adversarial" not in self.loss.views:
            return {"clean": batch.x}, {}
        step.phase("attack")
        with step.attacking():
            made = self.adversary(step.inference, batch.x, batch.y, batch.noise)
        contracts.adversarial_batch(self.adversary, made, batch.x, values=step.moment.step == 0)
        return {"clean": batch.x, "adversarial": made.images}, made.counts

    def state_dict(self) -> dict[str, Any]:
        """Returns what the adversary keeps."""
        return self.adversary.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        self.adversary.load_state_dict(state)
