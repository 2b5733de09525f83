"""Free adversarial training: every batch is replayed, and each backward pass updates weights and perturbation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from robustcords.config.requirements import ADVERSARIAL_VIEW
from robustcords.methods.base import Batch, Method, MethodConfig, Step, StepReport
from robustcords.runtime import collectives


class Free(Method):
    """Free adversarial training (Shafahi et al. 2019, Alg. 1): one backward pass for the attack and the update.

    Each batch is replayed. In a replay one backward pass at ``x + delta`` gives both the weights' gradient and the
    images', for ``delta <- Proj(delta + epsilon * sign(grad))``. The perturbation carries over: the next batch starts
    from that of the last, position by position in the global batch, so it is the same on any number of processes.
    Epochs, schedules and averages count batches, not replays.

    `attack` is not run in training; a selection may use it.

    Args:
        loss: of adversarial images only.
        attack: has the threat model.
        effort: uniform, as every example is attacked alike.
        options: the fields of `Config`.

    Attributes:
        delta: (B, C, H, W) for the largest global batch so far; None before the first.

    Example:
        >>> method = Free(SAT(), PGD(threat), replays=8)
    """

    class Config(MethodConfig):
        """Options of Free.

        Attributes:
            replays: number of optimizer steps on each batch (m in the paper). With m of them, m times fewer epochs take
                as long as standard training.
        """

        name: str = "free"
        replays: Annotated[int, Field(ge=1)] = 8

    config: Free.Config
    provides: ClassVar[frozenset[str]] = frozenset({ADVERSARIAL_VIEW})
    requires = frozenset()

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.delta: Tensor | None = None

    def step(self, step: Step, batch: Batch) -> StepReport:
        """Takes one optimizer step per replay."""
        threat, delta = self.attack.threat, self._of_share(batch)
        step.phase("update")
        for _ in range(self.config.replays):
            x = threat.project(batch.x + delta, batch.x).requires_grad_()
            for rows in step.micro_batches(batch):
                step.backward(step.losses({"adversarial": x}, batch, rows), batch, rows)
            assert x.grad is not None
            gradient = torch.where(x.grad.isfinite(), x.grad, 0.0)  # float16 may have overflown
            delta = threat.project(threat.ascend(x.detach(), gradient, threat.epsilon), batch.x) - batch.x
            step.optimizer_step()
        self._keep(delta)
        return StepReport()

    def _of_share(self, batch: Batch) -> Tensor:
        """Returns the perturbation of this process's share of a batch, in the images' memory format."""
        delta = torch.zeros_like(batch.x)
        if self.delta is not None:
            previous = self.delta[collectives.rows_before(batch.noise.keys) :][: len(delta)]
            delta[: len(previous)] = previous
        return delta

    def _keep(self, delta: Tensor) -> None:
        """Stores the perturbation of the global batch; positions beyond a smaller batch keep theirs."""
        everyone = torch.cat(collectives.gather_rows(delta))
        rest = everyone[:0] if self.delta is None else self.delta[len(everyone) :].to(everyone)
        self.delta = torch.cat([everyone, rest])

    def state_dict(self) -> dict[str, Any]:
        """Returns the perturbation."""
        return {"delta": None if self.delta is None else self.delta.contiguous()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the perturbation."""
        self.delta = state["delta"]
