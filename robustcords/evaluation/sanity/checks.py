"""Whether a robust accuracy is credible: symptoms of masked gradients.

A model whose gradients are useless (zero, shattered or random) makes PGD fail without being robust. The checks are
those of Athalye et al. 2018, "Obfuscated Gradients Give a False Sense of Security" (section 3.1), and Carlini et al.
2019, "On Evaluating Adversarial Robustness". All look at the images that the model classifies correctly as they are,
and compare attacks image by image.

Where neither of two attacks is the stronger, an image that just one of them breaks is as likely to be broken by either:
the exact form of McNemar's test, a binomial with probability 1/2. A check fails where an attack that must not be the
stronger one is so at the level of 1 %, divided by the number of comparisons that the check makes (Bonferroni). So an
honest model fails such a check by chance once in a hundred times at most. Zero gradients and an unbounded radius leave
no room for chance: there one image decides. The evaluation's own PGD is held against AutoAttack, which is stronger, on
the same images: there the check fails where PGD leaves at least a tenth of them too many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustcords.config.schema import format_radius
from robustcords.data.images import Images
from robustcords.engine.modes import without_parameter_gradients
from robustcords.evaluation import ledger
from robustcords.evaluation.attacks.pgd import PGDEvaluation
from robustcords.evaluation.evaluator import Evaluator, share
from robustcords.evaluation.results import Check, SanityChecks
from robustcords.evaluation.sanity.probe import STEPS, Probe
from robustcords.losses.objective import margin_of
from robustcords.threats.base import ThreatModel

IMAGES = 256
"""How many test images are looked at where nobody says otherwise."""

LEVEL = 0.01
"""The chance, at most, that an honest model fails one check."""

FAR = 0.1
"""The largest share of all images that may withstand an evaluation's PGD and not AutoAttack."""


@dataclass(frozen=True)
class Sanity:
    """The checks for masked gradients, and their settings.

    Attributes:
        threat: norm and radius, greater than 0, of the evaluation's figures.
        limit: number of test images, sampled as in an evaluation; 0 for all.
        pgd: the evaluation's own PGD, whose figures are in question; defaults follow from ``threat``.
    """

    threat: ThreatModel
    limit: int = IMAGES
    pgd: PGDEvaluation = field(default_factory=PGDEvaluation)

    def check(
        self,
        model: nn.Module,
        data: Images,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        store: Path | None = None,
        on_progress: ledger.Progress | None = None,
    ) -> SanityChecks:
        """Runs all checks; distributed and resumable like `robustcords.evaluation.evaluate.evaluate`.

        Args:
            model: images in [0, 1] to logits, on ``device``; run in eval mode.
            data: the test set.
            seed: of all random numbers.
            device: of the model.
            store: folder for finished chunks, or None.
            on_progress: called as ``on_progress(what, done, total)``.

        Raises:
            UserError: there are no images.
        """
        evaluator = Evaluator.start(model, data, self.limit, self.threat, seed, device, store, on_progress)
        with evaluator.measuring(), without_parameter_gradients(model):
            probe = Probe(evaluator, evaluator.clean())
            square = probe.square()
            findings = [
                _gradients(probe.gradients()),
                _more_steps(trajectory := probe.trajectory()),
                _larger_radius({radius: probe.radius(radius) for radius in probe.radii}),
                _unbounded(probe.unbounded()),
                _black_box(square, {"cross-entropy": probe.pgd(), "margin": probe.pgd(margin_of, "margin")}),
                _noise(probe.noise(), trajectory[STEPS[-1]]),
                _autoattack(*probe.evaluated(self.pgd.resolved(self.threat)), square, evaluator.count),
            ]
        return SanityChecks(
            examples=evaluator.count,
            sample=evaluator.kind,
            attacked=int(probe.clean.sum()),
            norm=self.threat.norm,
            epsilon=format_radius(self.threat.epsilon),
            level=LEVEL,
            checks=findings,
        )


def p_value(first: Tensor, second: Tensor) -> float:
    """Returns the p-value of the one-sided exact McNemar test, small if ``second`` is true more often than ``first``.

    Args:
        first: (n,) bool, for the same images as ``second``.
        second: (n,) bool.
    """
    from scipy.stats import binomtest

    alone, other = int((second & ~first).sum()), int((first & ~second).sum())
    return float(binomtest(alone, alone + other, 0.5, alternative="greater").pvalue) if alone + other else 1.0


def _gradients(whole: Tensor) -> Check:
    zero = int((~whole).sum())
    status = "fail" if zero else "pass"
    text = f"the gradient is zero, or no number, at {zero} of {len(whole)} images"
    return _finding("zero gradients", status if len(whole) else "not conclusive", text, {"zero": zero})


def _more_steps(withstood: dict[int, Tensor]) -> Check:
    after = f"after {', '.join(map(str, withstood))} steps"
    return _ordered("more steps", after, {str(steps): found for steps, found in withstood.items()})


def _larger_radius(withstood: dict[float, Tensor]) -> Check:
    named = {format_radius(radius): found for radius, found in withstood.items()}
    return _ordered("larger radius", f"at {', '.join(named)}", named)


def _ordered(name: str, where: str, withstood: dict[str, Tensor]) -> Check:
    """Judges attacks in the order of their strength: none may be weaker than one before it."""
    flags = list(withstood.values())
    pairs = list(combinations(flags, 2))
    # More images withstand the later attack than the earlier one: the earlier one breaks more.
    smallest = min(p_value(earlier, later) for earlier, later in pairs)
    shares = {key: share(found) for key, found in withstood.items()}
    status = _judge(smallest, len(pairs), flags)
    text = f"{_percent(shares.values())} % withstand PGD {where}; the most suspicious rise has p = {smallest:.2g}"
    return _finding(name, status, text, {"withstood": shares, "p_value": smallest, "comparisons": len(pairs)})


def _unbounded(withstood: Tensor) -> Check:
    left, count = int(withstood.sum()), len(withstood)
    measured: dict[str, Any] = {"withstood": left}
    text = f"{left} of {count} images withstand PGD of unbounded radius"
    if not left and count:
        measured["upper_bound"] = bound = 1 - LEVEL ** (1 / count)
        text += f", so at most {bound:.1%} of all such images do (exact binomial bound at {1 - LEVEL:.0%})"
    return _finding("unbounded radius", ("fail" if left else "pass") if count else "not conclusive", text, measured)


def _black_box(square: Tensor | None, white: dict[str, Tensor]) -> Check:
    name = "black-box"
    if square is None:
        return _finding(name, "not conclusive", "Square cannot run on images of this size in this norm", {})
    # More images withstand PGD than withstand Square.
    values = {loss: p_value(square, found) for loss, found in white.items()}
    status = _judge(min(values.values()), len(white), [square, *white.values()])
    shares = {"Square": share(square), **{f"PGD on {loss}": share(found) for loss, found in white.items()}}
    beaten = " and ".join(f"{int((found & ~square).sum())} that PGD on {loss} did not" for loss, found in white.items())
    text = f"{_listed(shares)}; Square broke {beaten}; p = {min(values.values()):.2g}"
    return _finding(name, status, text, {"withstood": shares, "p_value": values, "comparisons": len(white)})


def _noise(noise: Tensor, attack: Tensor) -> Check:
    stronger, weaker = p_value(noise, attack), p_value(attack, noise)
    status = "fail" if stronger <= LEVEL else "pass" if weaker <= LEVEL else "not conclusive"
    shares = {f"{STEPS[-1]} random points": share(noise), f"PGD of {STEPS[-1]} steps": share(attack)}
    text = f"{_listed(shares)}; p = {weaker:.2g} that noise is no weaker"
    return _finding("random noise", status, text, {"withstood": shares, "p_value": weaker, "reversed": stronger})


def _autoattack(pgd: Tensor, both: Tensor, square: Tensor | None, examples: int) -> Check:
    """Judges the evaluation's PGD by the share of ``examples`` that withstand it but not AutoAttack.

    AutoAttack is stronger, so the question is by how much: without masked gradients the gap is a few points.
    """
    from scipy.stats import binomtest

    left = both if square is None else both & square
    gap = int((pgd & ~left).sum())
    value = float(binomtest(gap, examples, FAR, alternative="greater").pvalue)
    # With so few images that all of them together would not do, nothing can be said.
    silent = len(pgd) == 0 or binomtest(len(pgd), examples, FAR, alternative="greater").pvalue > LEVEL
    status = "fail" if value <= LEVEL else "not conclusive" if silent else "pass"
    shares = {"PGD": int(pgd.sum()) / examples, "AutoAttack": int(left.sum()) / examples}
    text = (
        f"of all {examples} images {shares['PGD']:.1%} withstand the evaluation's PGD, and {shares['AutoAttack']:.1%} "
        f"AutoAttack's APGD and Square too; p = {value:.2g} that the difference is no more than {FAR:.0%}"
    )
    return _finding("AutoAttack", status, text, {"withstood": shares, "gap": gap / examples, "p_value": value})


def _judge(smallest: float, comparisons: int, flags: Sequence[Tensor]) -> str:
    """Returns the status of some comparisons from their smallest p-value.

    It is not conclusive if no image was broken, or with fewer images than ``log2(comparisons / LEVEL)``, for which no
    outcome could fail.
    """
    level = LEVEL / comparisons
    if smallest <= level:
        return "fail"
    idle = all(bool(withstood.all()) for withstood in flags)
    return "not conclusive" if idle or 0.5 ** len(flags[0]) > level else "pass"


def _finding(name: str, status: str, text: str, measured: dict[str, Any]) -> Check:
    return Check(name=name, status=status, finding=text, measured=measured)


def _percent(shares: Any) -> str:
    return ", ".join(f"{100 * share:.1f}" for share in shares)


def _listed(shares: dict[str, float]) -> str:
    return "; ".join(f"{100 * share:.1f} % withstand {name}" for name, share in shares.items())
