"""Whether a robust accuracy can be believed: what masked gradients would give away.

A model whose gradients are useless (zero, shattered or random) makes PGD fail without being robust. The checks are
those of Athalye et al. 2018, "Obfuscated Gradients Give a False Sense of Security" (section 3.1), and Carlini et al.
2019, "On Evaluating Adversarial Robustness". All look at the images that the model classifies correctly as they are,
and compare attacks image by image.

Where neither of two attacks is the stronger, an image that just one of them breaks is as likely to be broken by either:
the exact form of McNemar's test, a binomial with probability 1/2. A check fails where an attack that must not be the
stronger one is so at the level of 1 %, divided by the number of comparisons that the check makes (Bonferroni). So an
honest model fails a check by chance once in a hundred times at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcords import autoattack, chunks
from robustcords.attacks.base import Objective, Start, input_gradient, without_parameter_gradients
from robustcords.attacks.pgd import PGD
from robustcords.config import format_radius
from robustcords.data.base import ImageSet
from robustcords.evaluation import Session, classified, cross_entropy_of, withstands
from robustcords.rng import Noise, derive
from robustcords.threat import ThreatModel

IMAGES = 256
"""How many test images are looked at where nobody says otherwise."""

LEVEL = 0.01
"""The chance, at most, that an honest model fails one check."""

_BATCH = 256
STEPS = (5, 10, 20, 50, 100)
_FACTORS = (0.5, 1.0, 2.0, 4.0)
_PGD_STEPS, _RESTARTS, _UNBOUNDED_STEPS, _QUERIES = 20, 5, 50, 1000

Finding = dict[str, Any]
"""``name``, ``status`` (``"pass"``, ``"fail"`` or ``"not conclusive"``), ``finding`` (a sentence), ``measured``."""


@dataclass(frozen=True)
class Sanity:
    """What is checked.

    Attributes:
        threat: norm and radius, greater than 0, that the evaluation's figures are for.
        limit: the first so many test images; 0 for all.
    """

    threat: ThreatModel
    limit: int = IMAGES

    def check(
        self,
        model: nn.Module,
        data: ImageSet,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        store: Path | None = None,
        on_progress: chunks.Progress | None = None,
    ) -> dict[str, Any]:
        """Runs all checks; shared out over processes and resumed as in `robustcords.evaluation.evaluate`.

        Args:
            model: images in [0, 1] to logits, on ``device``; run in eval mode.
            data: the test set.
            seed: of all random numbers.
            device: where the model is.
            store: folder for finished chunks, or None.
            on_progress: called as ``on_progress(what, done, total)``.

        Returns:
            JSON values: ``examples``, ``attacked`` (how many are classified correctly as they are), ``norm``,
            ``epsilon``, ``level``, and ``checks``, a list of `Finding`.

        Raises:
            UserError: there is no image.
        """
        session = Session.start(model, data, self.limit, self.threat.norm, seed, device, store, on_progress)
        with session.measuring(), without_parameter_gradients(model):
            probe = _Probe(session, self.threat, session.clean())
            findings = [
                _gradients(probe.gradients()),
                _more_steps(trajectory := probe.trajectory()),
                _larger_radius({factor: probe.radius(factor) for factor in _FACTORS}, self.threat),
                _unbounded(probe.unbounded()),
                _black_box(probe.square(), {"cross-entropy": probe.pgd(), "margin": probe.pgd(_margin_of, "margin")}),
                _noise(probe.noise(), trajectory[STEPS[-1]]),
            ]
        return {
            "examples": session.count,
            "attacked": int(probe.clean.sum()),
            "norm": self.threat.norm,
            "epsilon": format_radius(self.threat.epsilon),
            "level": LEVEL,
            "checks": findings,
        }


def p_value(first: Tensor, second: Tensor) -> float:
    """Returns how likely so many are in ``second`` but not in ``first``, or more, if either is expected as often.

    The one-sided exact McNemar test.

    Args:
        first: (n,) bool, of the same images as ``second``.
        second: (n,) bool.
    """
    from scipy.stats import binomtest

    alone, other = int((second & ~first).sum()), int((first & ~second).sum())
    return float(binomtest(alone, alone + other, 0.5, alternative="greater").pvalue) if alone + other else 1.0


@dataclass(frozen=True)
class _Probe:
    """Measures which images withstand what; every result is (attacked,), of the images that are classified right."""

    session: Session
    threat: ThreatModel
    clean: Tensor

    def gradients(self) -> Tensor:
        """Returns which images have a gradient of cross-entropy that is not exactly zero, or not a number."""

        def work(x: Tensor, y: Tensor, _: Noise) -> Tensor:
            gradient = input_gradient(self.session.model, cross_entropy_of(y), x).flatten(1)
            return (gradient != 0).any(1) & gradient.isfinite().all(1)

        return self._measure("gradients", {}, work) > 0

    def trajectory(self) -> dict[int, Tensor]:
        """Returns what withstands PGD after each of `STEPS` steps of one and the same run."""

        def work(x: Tensor, y: Tensor, noise: Noise) -> Tensor:
            x_adv, code = self.threat.uniform_start(x, noise), torch.zeros(len(x), dtype=torch.int64, device=x.device)
            for step in range(1, STEPS[-1] + 1):
                gradient = input_gradient(self.session.model, cross_entropy_of(y), x_adv)
                x_adv = self.threat.project(self.threat.ascend(x_adv, gradient, self.threat.epsilon / 4), x)
                if step in STEPS:
                    code += classified(self.session.model, x_adv, y).long() << STEPS.index(step)
            return code

        code = self._measure("steps", {"steps": list(STEPS), "epsilon": self.threat.epsilon}, work)
        return {steps: (code >> number) % 2 > 0 for number, steps in enumerate(STEPS)}

    def radius(self, factor: float) -> Tensor:
        """Returns what withstands PGD at a multiple of the radius."""
        return self._pgd(f"radius x {factor:g}", self.threat.epsilon * factor, _PGD_STEPS, restarts=1)

    def unbounded(self) -> Tensor:
        """Returns what withstands PGD that may turn an image into any other.

        It starts beside the image: from anywhere in the box the start alone would do the attack's work.
        """
        diameter = 1.0 if self.threat.norm == "linf" else self.session.data.images[0].numel() ** 0.5
        return self._pgd("unbounded", diameter, _UNBOUNDED_STEPS, _RESTARTS, start="gaussian")

    def pgd(
        self, objective_of: Callable[[Tensor], Objective] = cross_entropy_of, loss: str = "cross-entropy"
    ) -> Tensor:
        """Returns what withstands every restart of PGD at the radius."""
        return self._pgd(loss, self.threat.epsilon, _PGD_STEPS, _RESTARTS, objective_of)

    def square(self) -> Tensor | None:
        """Returns what withstands Square at the radius; None where it cannot run."""
        session = self.session
        if not autoattack.square_fits(session.norm, min(session.data.images.shape[-2:])):
            return None

        def work(x: Tensor, y: Tensor, noise: Noise) -> Tensor:
            seed = derive(session.seed, "sanity-square", int(noise.keys[0]))
            epsilon, norm = self.threat.epsilon, session.norm
            return autoattack.square(session.model, x, y, norm=norm, epsilon=epsilon, queries=_QUERIES, seed=seed)

        return self._measure("Square", {"queries": _QUERIES, "epsilon": self.threat.epsilon}, work) > 0

    def noise(self) -> Tensor:
        """Returns what withstands as many random points of the ball as the longest PGD takes steps."""

        def work(x: Tensor, y: Tensor, noise: Noise) -> Tensor:
            alive = torch.ones(len(x), dtype=torch.bool, device=x.device)
            for draw in range(STEPS[-1]):
                rows = alive.nonzero().flatten()
                x_noisy = self.threat.uniform_start(x[rows], noise.restart(draw)[rows])
                alive[rows] = classified(self.session.model, x_noisy, y[rows])
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
        threat = ThreatModel(norm=self.threat.norm, epsilon=epsilon)
        attack = PGD(threat, steps=steps, step_size=2.5 * epsilon / steps, random_start=start)

        def work(x: Tensor, y: Tensor, noise: Noise) -> Tensor:
            alive = torch.ones(len(x), dtype=torch.bool, device=x.device)
            return withstands(self.session.model, x, y, noise, alive, attack, restarts, objective_of)

        settings = {"steps": steps, "restarts": restarts, "epsilon": epsilon, "start": start}
        return self._measure(name, settings, work) > 0

    def _measure(self, name: str, settings: dict[str, Any], work: Callable[[Tensor, Tensor, Noise], Tensor]) -> Tensor:
        """Returns the numbers that ``work(x, y, noise)`` gives the images that are classified right, chunk by chunk."""
        session = self.session

        def chunk(rows: Tensor) -> tuple[Tensor, list[str]]:
            outcomes = torch.zeros(len(rows), dtype=torch.int64)
            for part in self.clean[rows].nonzero().flatten().split(_BATCH):
                if len(part) == 0:
                    break
                x, y = session.data.batch(rows[part], session.device)
                noise = Noise(derive(session.seed, f"sanity-{name}"), rows[part].to(session.device))
                outcomes[part] = work(x, y, noise).long().cpu()
            return outcomes, []

        return session.run(f"sanity: {name}", settings, session.count, chunk)[0][self.clean]


def _margin_of(y: Tensor) -> Objective:
    """Returns the margin ``max_{k != y} z_k - z_y`` as an objective: unlike cross-entropy it does not saturate."""

    def margin(logits: Tensor) -> Tensor:
        own = nn.functional.one_hot(y, logits.shape[1]).bool()
        return logits.masked_fill(own, -torch.inf).amax(1) - logits[own]

    return Objective(margin)


def _gradients(whole: Tensor) -> Finding:
    zero = int((~whole).sum())
    status = "fail" if zero else "pass"
    text = f"the gradient is zero, or no number, at {zero} of {len(whole)} images"
    return _finding("zero gradients", status if len(whole) else "not conclusive", text, {"zero": zero})


def _more_steps(withstood: dict[int, Tensor]) -> Finding:
    after = f"after {', '.join(map(str, withstood))} steps"
    return _ordered("more steps", after, {str(steps): found for steps, found in withstood.items()})


def _larger_radius(withstood: dict[float, Tensor], threat: ThreatModel) -> Finding:
    names = {factor: format_radius(threat.epsilon * factor) for factor in withstood}
    at = f"at {', '.join(names.values())}"
    return _ordered("larger radius", at, {names[factor]: found for factor, found in withstood.items()})


def _ordered(name: str, where: str, withstood: dict[str, Tensor]) -> Finding:
    """Judges attacks in the order of their strength: none may be weaker than one before it."""
    flags = list(withstood.values())
    pairs = list(combinations(flags, 2))
    # More images withstand the later attack than the earlier one: the earlier one breaks more.
    smallest = min(p_value(earlier, later) for earlier, later in pairs)
    shares = {key: _share(found) for key, found in withstood.items()}
    status = _judge(smallest, len(pairs), flags)
    text = f"{_percent(shares.values())} % withstand PGD {where}; the most suspicious rise has p = {smallest:.2g}"
    return _finding(name, status, text, {"withstood": shares, "p_value": smallest, "comparisons": len(pairs)})


def _unbounded(withstood: Tensor) -> Finding:
    left, count = int(withstood.sum()), len(withstood)
    measured: dict[str, Any] = {"withstood": left}
    text = f"{left} of {count} images withstand PGD of unbounded radius"
    if not left and count:
        measured["upper_bound"] = bound = 1 - LEVEL ** (1 / count)
        text += f", so at most {bound:.1%} of all such images do (exact binomial bound at {1 - LEVEL:.0%})"
    return _finding("unbounded radius", ("fail" if left else "pass") if count else "not conclusive", text, measured)


def _black_box(square: Tensor | None, white: dict[str, Tensor]) -> Finding:
    name = "black-box"
    if square is None:
        return _finding(name, "not conclusive", "Square cannot run under l2 on images of this size", {})
    # More images withstand PGD than withstand Square.
    values = {loss: p_value(square, found) for loss, found in white.items()}
    status = _judge(min(values.values()), len(white), [square, *white.values()])
    shares = {"Square": _share(square), **{f"PGD on {loss}": _share(found) for loss, found in white.items()}}
    beaten = " and ".join(f"{int((found & ~square).sum())} that PGD on {loss} did not" for loss, found in white.items())
    text = f"{_listed(shares)}; Square broke {beaten}; p = {min(values.values()):.2g}"
    return _finding(name, status, text, {"withstood": shares, "p_value": values, "comparisons": len(white)})


def _noise(noise: Tensor, attack: Tensor) -> Finding:
    stronger, weaker = p_value(noise, attack), p_value(attack, noise)
    status = "fail" if stronger <= LEVEL else "pass" if weaker <= LEVEL else "not conclusive"
    shares = {f"{STEPS[-1]} random points": _share(noise), f"PGD of {STEPS[-1]} steps": _share(attack)}
    text = f"{_listed(shares)}; p = {weaker:.2g} that noise is no weaker"
    return _finding("random noise", status, text, {"withstood": shares, "p_value": weaker, "reversed": stronger})


def _judge(smallest: float, comparisons: int, flags: Sequence[Tensor]) -> str:
    """Returns the status where the smallest p-value of some comparisons must not be small.

    Where nothing was broken there is nothing to compare; and with fewer images than ``log2(comparisons / LEVEL)`` no
    outcome whatever could have failed.
    """
    level = LEVEL / comparisons
    if smallest <= level:
        return "fail"
    idle = all(bool(found.all()) for found in flags)
    return "not conclusive" if idle or 0.5 ** len(flags[0]) > level else "pass"


def _finding(name: str, status: str, text: str, measured: dict[str, Any]) -> Finding:
    return {"name": name, "status": status, "finding": text, "measured": measured}


def _share(withstood: Tensor) -> float:
    return int(withstood.sum()) / max(1, len(withstood))


def _percent(shares: Any) -> str:
    return ", ".join(f"{100 * share:.1f}" for share in shares)


def _listed(shares: dict[str, float]) -> str:
    return "; ".join(f"{100 * share:.1f} % withstand {name}" for name, share in shares.items())
