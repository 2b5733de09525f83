"""The attacks that `robustcords.evaluation.sanity.checks` compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustcords.attacks.base import input_gradient
from robustcords.attacks.pgd import PGD
from robustcords.config.schema import format_radius
from robustcords.evaluation.attacks import autoattack
from robustcords.evaluation.attacks.pgd import PGDEvaluation, RestartedPGD
from robustcords.evaluation.evaluator import BATCH, Evaluator, classified, withstands
from robustcords.losses.objective import Objective, Start, cross_entropy_of
from robustcords.rng import Noise, derive
from robustcords.threats.base import ThreatModel

STEPS = (5, 10, 20, 50, 100)
"""How many steps of one and the same PGD are looked at."""

_PGD_STEPS, _RESTARTS, _UNBOUNDED_STEPS, _QUERIES = 20, 5, 50, 1000


@dataclass(frozen=True)
class Probe:
    """Runs the attacks that are compared; every result is (attacked,), for the correctly classified images.

    Attributes:
        evaluator: of the model and the test set, with the threat model.
        clean: mask (count,) of the correctly classified clean images.
    """

    evaluator: Evaluator
    clean: Tensor

    @property
    def threat(self) -> ThreatModel:
        """The evaluator's threat model."""
        return self.evaluator.threat

    @property
    def radii(self) -> list[float]:
        """Half the radius, the radius, twice and four times the radius, up to the diameter of the image space."""
        radii = (self.threat.nearest_radius(factor * self.threat.epsilon) for factor in (0.5, 1.0, 2.0, 4.0))
        return list(dict.fromkeys(min(radius, self._diameter) for radius in radii))

    @property
    def _diameter(self) -> float:
        """The distance between an all-black and an all-white image."""
        return self.threat.diameter(self.evaluator.data.shape)

    def gradients(self) -> Tensor:
        """Returns a mask of the images whose cross-entropy gradient is finite and not exactly zero."""

        def work(x: Tensor, y: Tensor, _: Noise) -> Tensor:
            gradient = input_gradient(self.evaluator.model, cross_entropy_of(y), x).flatten(1)
            return (gradient != 0).any(1) & gradient.isfinite().all(1)

        return self._measure("gradients", {}, work) > 0

    def trajectory(self) -> dict[int, Tensor]:
        """Returns the images that withstand PGD after each of `STEPS` steps of the same run."""

        def work(x: Tensor, y: Tensor, noise: Noise) -> Tensor:
            x_adv, code = self.threat.uniform_start(x, noise), torch.zeros(len(x), dtype=torch.int64, device=x.device)
            for step in range(1, STEPS[-1] + 1):
                gradient = input_gradient(self.evaluator.model, cross_entropy_of(y), x_adv)
                x_adv = self.threat.project(self.threat.ascend(x_adv, gradient, self.threat.epsilon / 4), x)
                if step in STEPS:
                    code += classified(self.evaluator.model, x_adv, y).long() << STEPS.index(step)
            return code

        code = self._measure("steps", {"steps": list(STEPS), "epsilon": self.threat.epsilon}, work)
        return {steps: (code >> number) % 2 > 0 for number, steps in enumerate(STEPS)}

    def radius(self, epsilon: float) -> Tensor:
        """Returns the images that withstand PGD at a radius."""
        return self._pgd(f"radius {format_radius(epsilon)}", epsilon, _PGD_STEPS, restarts=1)

    def unbounded(self) -> Tensor:
        """Returns the images that withstand PGD with an unbounded radius.

        It starts close to the image, as a random start in the whole box would break images by itself.
        """
        return self._pgd("unbounded", self._diameter, _UNBOUNDED_STEPS, _RESTARTS, start="gaussian")

    def pgd(
        self, objective_of: Callable[[Tensor], Objective] = cross_entropy_of, loss: str = "cross-entropy"
    ) -> Tensor:
        """Returns the images that withstand every restart of PGD at the radius."""
        return self._pgd(loss, self.threat.epsilon, _PGD_STEPS, _RESTARTS, objective_of)

    def evaluated(self, config: PGDEvaluation) -> tuple[Tensor, Tensor]:
        """Returns the images that withstand the evaluation's own PGD at the radius, and those that withstand APGD too.

        Args:
            config: after `PGDEvaluation.resolved`.
        """
        evaluator, epsilon = self.evaluator, self.threat.epsilon
        at_radius = config.model_copy(update={"epsilons": [epsilon]})
        (measured,) = RestartedPGD(self.threat, title="PGD", **dict(at_radius)).run(evaluator, self.clean)
        withstood = evaluator.withstood[measured.what]

        def work(x: Tensor, y: Tensor, noise: Noise) -> Tensor:
            seed = derive(evaluator.seed, "sanity-apgd", int(noise.keys[0]))
            return autoattack.apgd(evaluator.model, x, y, norm=evaluator.autoattack_norm, epsilon=epsilon, seed=seed)

        both = self._measure("APGD", {"after": at_radius.model_dump()}, work, withstood) > 0
        return withstood[self.clean], both

    def square(self) -> Tensor | None:
        """Returns the images that withstand Square at the radius; None if it cannot run."""
        evaluator = self.evaluator
        if not autoattack.square_fits(evaluator.autoattack_norm, evaluator.data.shape[1:]):
            return None

        def work(x: Tensor, y: Tensor, noise: Noise) -> Tensor:
            seed = derive(evaluator.seed, "sanity-square", int(noise.keys[0]))
            epsilon, norm = self.threat.epsilon, evaluator.autoattack_norm
            return autoattack.square(evaluator.model, x, y, norm=norm, epsilon=epsilon, queries=_QUERIES, seed=seed)

        return self._measure("Square", {"queries": _QUERIES, "epsilon": self.threat.epsilon}, work) > 0

    def noise(self) -> Tensor:
        """Returns the images that withstand as many random points of the ball as the longest PGD has steps."""

        def work(x: Tensor, y: Tensor, noise: Noise) -> Tensor:
            alive = torch.ones(len(x), dtype=torch.bool, device=x.device)
            for draw in range(STEPS[-1]):
                rows = alive.nonzero().flatten()
                x_noisy = self.threat.uniform_start(x[rows], noise.restart(draw)[rows])
                alive[rows] = classified(self.evaluator.model, x_noisy, y[rows])
            return alive

        return self._measure("noise", {"draws": STEPS[-1], "epsilon": self.threat.epsilon}, work) > 0

    def _pgd(
        self,
        name: str,
        epsilon: float,
        steps: int,
        restarts: int,
        objective_of: Callable[[Tensor], Objective] = cross_entropy_of,
        start: Start = "uniform",
    ) -> Tensor:
        # Madry et al. 2018: steps that reach the other end of the ball, and half as far again, whatever its size.
        threat = self.threat.with_epsilon(epsilon)
        attack = PGD(threat, steps=steps, step_size=2.5 * epsilon / steps, random_start=start)

        def work(x: Tensor, y: Tensor, noise: Noise) -> Tensor:
            alive = torch.ones(len(x), dtype=torch.bool, device=x.device)
            return withstands(self.evaluator.model, x, y, noise, alive, attack, restarts, objective_of)

        settings = {"steps": steps, "restarts": restarts, "epsilon": epsilon, "start": start}
        return self._measure(name, settings, work) > 0

    def _measure(
        self,
        name: str,
        settings: dict[str, Any],
        work: Callable[[Tensor, Tensor, Noise], Tensor],
        among: Tensor | None = None,
    ) -> Tensor:
        """Returns the results of ``work(x, y, noise)`` for the correctly classified images, computed in chunks.

        Images outside ``among`` (count,) bool get 0; it defaults to all correctly classified ones.
        """
        evaluator = self.evaluator
        among = self.clean if among is None else among

        def chunk(rows: Tensor) -> tuple[Tensor, list[str]]:
            outcomes = torch.zeros(len(rows), dtype=torch.int64)
            for part in among[rows].nonzero().flatten().split(BATCH):
                if len(part) == 0:
                    break
                x, y = evaluator.batch(rows[part])
                outcomes[part] = work(x, y, evaluator.noise(f"sanity-{name}", rows[part])).long().cpu()
            return outcomes, []

        return evaluator.run(f"sanity: {name}", settings, evaluator.count, chunk)[0][self.clean]
