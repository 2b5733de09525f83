"""Free adversarial training (Shafahi et al. 2019, Alg. 1), from outside the package."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field

from robustcords import Batch, Method, MethodConfig, Step, StepReport
from robustcords.config.requirements import ADVERSARIAL_VIEW


class Free(Method):
    """Replays every batch, and moves its perturbation by the gradient that the weights' step computes anyway."""

    class Config(MethodConfig):
        """Options of Free.

        Attributes:
            replays: of each batch, >= 1.
        """

        name: str = "free"
        replays: Annotated[int, Field(ge=1)] = 4

    config: "Free.Config"
    provides: ClassVar[frozenset[str]] = frozenset({ADVERSARIAL_VIEW})

    def step(self, step: Step, batch: Batch) -> StepReport:
        """Takes as many steps as there are replays; the epsilon-ball and the box are the threat model's."""
        threat, delta = self.attack.threat, torch.zeros_like(batch.x)
        step.phase("update")
        for _ in range(self.config.replays):
            x = threat.project(batch.x + delta, batch.x).requires_grad_()
            for rows in step.micro_batches(batch):
                step.backward(step.losses({"adversarial": x}, batch, rows), batch, rows)
            gradient = x.grad
            assert gradient is not None
            delta = threat.ascend(x.detach(), gradient, threat.epsilon) - batch.x
            step.optimizer_step()
        return StepReport()
