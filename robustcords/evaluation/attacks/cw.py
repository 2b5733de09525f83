"""The l2 attack of Carlini and Wagner, which minimises the size of the perturbation."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from robustcords.config.requirements import L2_DISTANCES
from robustcords.config.schema import format_radius
from robustcords.engine import contracts
from robustcords.engine.modes import Model, without_parameter_gradients
from robustcords.engine.precision import full_precision
from robustcords.evaluation.attacks.base import EvaluationAttack, EvaluationAttackConfig, Radii
from robustcords.evaluation.evaluator import BATCH, Evaluator
from robustcords.evaluation.results import Measurement
from robustcords.losses.objective import margin_of

_INSIDE = 1 - 1e-6  # how far towards 0 and 1 tanh is taken, whose inverse is infinite there
_BETTER = 0.9999  # the loss falls, where it is below this times what it was a tenth of the steps ago


class CarliniWagnerEvaluation(EvaluationAttackConfig):
    """The l2 attack of Carlini and Wagner 2017. The defaults are those of its authors' code, but for the steps.

    Attributes:
        steps: number of Adam's steps for each constant, fewer if the loss no longer falls. The authors use 10,000.
        searches: number of constants tried for each image: the constant rises tenfold until one misleads the model, and
            then lies halfway between the largest that did not and the smallest that did.
        lr: Adam's learning rate.
        constant: the first constant.
        epsilons: the radii to report, all different and above 0; left out, epsilon.
        limit: number of evaluated images to attack, chosen as by ``evaluation.limit``; 0 for all. The report then has
            clean accuracy and PGD on these images too.
    """

    steps: Annotated[int, Field(ge=1, le=100_000)] = 1000
    searches: Annotated[int, Field(ge=1, le=100)] = 9
    lr: Annotated[float, Field(gt=0)] = 0.01
    constant: Annotated[float, Field(gt=0)] = 1e-3
    epsilons: Radii | None = None
    limit: Annotated[int, Field(ge=0)] = 0


class CarliniWagner(EvaluationAttack):
    """The nearest adversarial image in l2, by Adam and a search for the constant (Carlini and Wagner 2017).

    For each image x, ``|| x' - x ||^2 + c max(z_y - max over k != y of z_k, 0)`` is minimised over w in
    ``x' = (tanh(w) + 1) / 2``, which is in [0, 1] whatever w is; https://arxiv.org/abs/1608.04644, section V. An image
    withstands a radius if no adversarial image was found within it. The median distance of all correctly classified
    images is reported too, as ``median_distance``: null if half of them are never misclassified.

    Example:
        >>> config = EvaluationConfig(attacks=[{"name": "cw", "steps": 200, "limit": 500}])
        >>> evaluate(model, test, config, ThreatModel(norm="l2", epsilon=0.5), seed=0).attacks
    """

    Config: ClassVar[type[EvaluationAttackConfig]] = CarliniWagnerEvaluation
    requires: ClassVar[frozenset[str]] = frozenset({L2_DISTANCES})
    config: CarliniWagnerEvaluation

    @property
    def label(self) -> str:
        """``"CW-1000-9"``: steps and searches."""
        return f"CW-{self.config.steps}-{self.config.searches}"

    @property
    def limit(self) -> int:
        """The option."""
        return self.config.limit

    def run(self, evaluator: Evaluator, clean: Tensor) -> list[Measurement]:
        """Returns the accuracy at each radius, from one search for all of them."""
        options = self.config.model_dump(mode="json", exclude={"epsilons", "limit"})
        settings = {"by": contracts.title(self), "attack": options}
        places, kind = evaluator.part(self.limit)

        def search(rows: Tensor) -> tuple[Tensor, list[str]]:
            nearest = torch.zeros(len(rows))
            for part in clean[places[rows]].nonzero().flatten().split(BATCH):
                if len(part):
                    nearest[part] = self.distances(evaluator.model, *evaluator.batch(places[rows[part]])).cpu()
            return nearest.view(torch.int32).long(), []  # the bits of a float32 >= 0, which a ledger keeps as a number

        bits, _ = evaluator.run(f"{self.title} distances", {**settings, "sample": kind}, len(places), search)
        distances = torch.zeros(evaluator.count, dtype=torch.float64)
        distances[places] = bits.to(torch.int32).view(torch.float32).double()
        attacked = distances[places][clean[places]].numpy()
        median = float(np.median(attacked)) if len(attacked) else np.inf
        extras = {"median_distance": median if np.isfinite(median) else None}
        measured = []
        for epsilon in self.config.radii:

            def withstands(rows: Tensor, epsilon: float = epsilon) -> tuple[Tensor, list[str]]:
                return (distances[rows] > epsilon).long(), []

            measurement = self.measure(evaluator, format_radius(epsilon), settings, withstands)
            measured.append(measurement.model_copy(update={"extras": extras}))
        return measured

    def distances(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """Returns (B,) float32, the distance of the nearest adversarial image found; infinite if there is none.

        Args:
            model: images in [0, 1] to logits, in eval mode.
            x: (B, C, H, W) in [0, 1], each classified correctly.
            y: (B,) labels.
        """
        c = torch.full((len(x),), self.config.constant, device=x.device, dtype=x.dtype)
        low, high, nearest = torch.zeros_like(c), torch.full_like(c, torch.inf), torch.full_like(c, torch.inf)
        with without_parameter_gradients(model):
            for _ in range(self.config.searches):
                distance = self._descend(model, x, y, c)
                nearest = nearest.minimum(distance)
                low, high = torch.where(distance.isfinite(), low, c), torch.where(distance.isfinite(), c, high)
                c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)
        return nearest.float()

    def _descend(self, model: Model, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        """Returns (B,), the distances of the nearest adversarial images on Adam's path, with one constant per image."""
        w = torch.atanh((2 * x - 1) * _INSIDE)
        start, first, second = (w.tanh() + 1) / 2, torch.zeros_like(w), torch.zeros_like(w)
        nearest, last = torch.full_like(c, torch.inf), torch.full_like(c, torch.inf)
        rows = torch.arange(len(x), device=x.device)
        for step in range(1, self.config.steps + 1):
            x_adv = (w.tanh() + 1) / 2
            hinge, misled, gradient = _hinge(model, x_adv, y[rows])
            distance = torch.linalg.vector_norm((x_adv - x[rows]).flatten(1), dim=1)
            nearest[rows] = torch.where(misled, nearest[rows].minimum(distance), nearest[rows])
            # d x' / d w = (1 - tanh(w)^2) / 2 = 2 x' (1 - x')
            outer = 2 * (x_adv - start) + c[rows].view(-1, 1, 1, 1) * gradient
            gradient = outer * 2 * x_adv * (1 - x_adv)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
            w = w - self.config.lr * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            if step % max(1, self.config.steps // 10) == 0:
                loss = (x_adv - start).square().flatten(1).sum(1) + c[rows] * hinge
                falls = loss <= _BETTER * last
                if not bool(falls.any()):
                    break
                rows, last = rows[falls], loss[falls]
                w, start, first, second = w[falls], start[falls], first[falls], second[falls]
        return nearest


def _hinge(model: Model, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns ``max(z_y - max over k != y of z_k, 0)`` (B,), whether y is not predicted, and the input gradient."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = full_precision(model(x))
        hinge = (-margin_of(y).value(logits)).clamp(min=0)
        (gradient,) = torch.autograd.grad(hinge.sum(), x)
    return hinge.detach(), (logits.argmax(1) != y) | logits.isnan().any(1), gradient
