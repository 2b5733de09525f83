"""Fast-BAT: fast bi-level adversarial training."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from robustcords.attacks.base import CleanLogits, input_gradient
from robustcords.config.requirements import ADVERSARIAL_VIEW, CUBE, SECOND_DERIVATIVES
from robustcords.config.schema import Positive, filled_in, with_defaults
from robustcords.engine.modes import evaluation_mode, without_parameter_gradients
from robustcords.losses.check import objective
from robustcords.methods.base import Batch, Method, MethodConfig, Step, StepReport
from robustcords.threats.base import ThreatModel


class Attacked(NamedTuple):
    """Result of the lower-level problem for a batch; each (B, C, H, W).

    Attributes:
        before: images after the first step, ``x + d``.
        images: images after the second step, ``x + d*``.
        direction: gradient of the objective at `images`, divided by lam; 0 where `images` are at the bounds.
    """

    before: Tensor
    images: Tensor
    direction: Tensor


class FastBAT(Method):
    """Fast bi-level adversarial training (Zhang et al. 2022): the update accounts for the attack's response.

    From a uniform start two steps of gradient ascent on the cross-entropy, without a sign, each clipped to the ball and
    to [0, 1], give d and then ``d*``. Inside the bounds (H = 1) the derivative of d* with respect to the weights has a
    closed form, which adds a term to the update's gradient::

        grad_theta CE(x + d*) + 1 / lam * grad_theta <grad_d CE(x + d), H * grad_d CE(x + d*)>

    with the second factor of the product held fixed. The attack and the term use the model in eval mode. `attack` is
    not run in training; a selection may use it.

    Args:
        loss: of adversarial images only; the attack maximises its objective.
        attack: has the threat model, which is l-infinity.
        effort: uniform, as every example is attacked alike.
        options: the fields of `Config`.

    Example:
        >>> method = FastBAT(SAT(), PGD(threat))
    """

    class Config(MethodConfig):
        """Options of Fast-BAT.

        Attributes:
            step_size: change of a pixel for a gradient of 1; left out, the authors' 5000/255 up to a radius of 8/255
                and 2000/255 above.
            lam: weight of the quadratic term of the attack's problem.
        """

        name: str = "fast_bat"
        step_size: Positive | None = None
        lam: Positive = 10.0

    config: FastBAT.Config
    provides: ClassVar[frozenset[str]] = frozenset({ADVERSARIAL_VIEW})
    requires: ClassVar[frozenset[str]] = frozenset({CUBE, SECOND_DERIVATIVES})

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.config = self.resolved(self.config, self.attack.threat)

    @classmethod
    def resolved(cls, config: FastBAT.Config, threat: ThreatModel) -> FastBAT.Config:
        """Returns the options with a step size."""
        return with_defaults(config, step_size=(5000 if threat.epsilon <= 8 / 255 + 1e-9 else 2000) / 255)

    def step(self, step: Step, batch: Batch) -> StepReport:
        """Attacks the batch, and takes an optimizer step along both terms of the gradient."""
        step.phase("attack")
        attacked = self.attacked(step, batch)
        step.phase("update")
        # As they were in the attack: the update's passes change BatchNorm's statistics.
        buffers = {f"model.{name}": buffer.clone() for name, buffer in step.model.named_buffers()}
        for rows in step.micro_batches(batch):
            response = self.response(step, batch, attacked, buffers, rows)
            losses = step.losses({"adversarial": attacked.images}, batch, rows)
            # The reported loss is that of the images alone.
            step.backward(losses + response - response.detach(), batch, rows)
        step.optimizer_step()
        return StepReport()

    def attacked(self, step: Step, batch: Batch) -> Attacked:
        """Returns the result of the two ascent steps."""
        threat, model, size = self.attack.threat, step.inference, filled_in(self.config.step_size)
        wanted = objective(self.loss.at(step.moment), batch.y, CleanLogits(model, batch.x))
        with step.attacking(), evaluation_mode(model), without_parameter_gradients(model):
            x = threat.uniform_start(batch.x, batch.noise)
            before = threat.project(x + size * input_gradient(model, wanted, x), batch.x)
            images = threat.project(before + size * input_gradient(model, wanted, before), batch.x)
            gradient = input_gradient(model, wanted, images)
        low, high = threat.bounds
        lower, upper = (batch.x - threat.epsilon).clamp(min=low), (batch.x + threat.epsilon).clamp(max=high)
        inside = (lower < images) & (images < upper)
        return Attacked(before, images, torch.where(inside, gradient, 0.0) / self.config.lam)

    def response(self, step: Step, batch: Batch, attacked: Attacked, buffers: dict[str, Tensor], rows: slice) -> Tensor:
        """Returns the term of the attack's response for some rows (b,), with a graph.

        Args:
            step: the loop's interface.
            batch: for its labels.
            attacked: the attack's result.
            buffers: of the model during the attack, by their names in `Step.inference`.
            rows: of the batch.
        """
        model: Any = step.inference
        wanted = objective(self.loss.at(step.moment), batch.y[rows], CleanLogits(model, batch.x[rows]))
        x = attacked.before[rows].detach().requires_grad_()
        with evaluation_mode(model):
            value = wanted.value(functional_call(model, buffers, (x,))).sum()
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        return (gradient * attacked.direction[rows]).flatten(1).sum(dim=1)
