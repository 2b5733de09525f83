"""Importance sampling by gradient norm, with weights that keep the mean gradient unbiased."""

from __future__ import annotations

import time
from typing import Any, Literal

import torch
from torch import Tensor

from robustcords.config.schema import Share
from robustcords.data.split import apportion
from robustcords.rng import generator
from robustcords.selection.base import PlainStrategy, SelectionContext, SelectionReport
from robustcords.selection.gradient_based import AdversarialStrategy
from robustcords.selection.gradient_based_config import AttackConfig
from robustcords.selection.gradients.factors import Gradients
from robustcords.selection.gradients.groups import check_budget, labels_of, rows_of
from robustcords.selection.observer import LastLosses
from robustcords.selection.solvers.systematic import drawn_by_size


class ImportanceConfig(AttackConfig):
    """Options of importance sampling.

    Attributes:
        score: what examples are drawn by: ``"gradient"``, the length of the last layer's gradient at adversarial
            examples, which takes a pass over the data; or ``"loss"``, the loss in the last training step with the
            example, which costs nothing, so that ``select_every`` may be 1.
        uniform: share of the uniform distribution in the sampling distribution; weights are at most ``1 / uniform``
            times N / k.
    """

    name: str = "importance"
    score: Literal["gradient", "loss"] = "gradient"
    uniform: Share = 0.1


class ImportanceSampling(PlainStrategy):
    """Draws examples without repetition by gradient length or loss, weighted 1 / pi (Katharopoulos and Fleuret 2018).

    "Not All Samples Are Created Equal: Deep Learning with Importance Sampling", https://arxiv.org/abs/1803.00942, whose
    bound on an example's gradient is that of the last layer. With p the mixture ``u / N + (1 - u) s_i / sum s`` of a
    uniform distribution and the scores, example i is drawn with probability ``pi_i = min(1, c p_i)``, where c makes
    these add up to the budget, by systematic sampling. A sum weighted by ``1 / pi_i`` is that of all the data in
    expectation, so the weights' normaliser is fixed. The paper draws with repetition, batch by batch, with weights
    ``1 / (N p_i)``.

    Classes have their shares of the budget with ``per_class``. ``per_batch`` draws batches by the length of their mean
    gradients, and cuts the last, for which its weight does not make up. By loss, it means ``full``.

    Example:
        >>> config = ImportanceSampling.Config(fraction=0.3)
        >>> selector = SubsetSelector(ImportanceSampling, config)
    """

    Config = ImportanceConfig
    fixes_normaliser = True

    @classmethod
    def build_observer(cls, config: Any, size: int) -> LastLosses | None:
        """Returns an observer if sampling is by losses, which every step then gathers from all processes."""
        return LastLosses(size) if config.score == "loss" else None

    @classmethod
    def check(cls, config: Any, context: SelectionContext) -> None:
        """Checks the last layer if sampling is by gradients."""
        if config.score == "gradient":
            ByGradient.check(config, context)

    def select(self, budget: int, model_params: Any) -> tuple[list[int], Tensor]:
        """Returns ``budget`` rows of the training loader's data set, and their weights."""
        if self.config.score == "gradient":
            judge = ByGradient.from_context(self.config, self.context)
            found = judge.select(budget, model_params)
            self.report = judge.report
            return found
        start = time.perf_counter()
        rows = torch.tensor(rows_of(self.context.train_loader))
        check_budget(budget, len(rows))
        if budget == len(rows):
            return rows.tolist(), torch.ones(budget)
        parts = [self._from_some(*group) for group in self._groups(rows, budget)]
        places, weights = (torch.cat(part) for part in zip(*parts, strict=True))
        self.report = SelectionReport({"solve": time.perf_counter() - start})
        return rows[places].tolist(), weights.float()

    def _groups(self, rows: Tensor, budget: int) -> list[tuple[int, Tensor, Tensor, int]]:
        """Returns each group's number, rows (n,), scores (n,) and budget."""
        assert isinstance(self.context.observer, LastLosses)
        scores = known_scores(self.context.observer.losses[rows])
        if self.config.granularity in {"full", "per_batch"}:
            return [(0, torch.arange(len(rows)), scores, budget)]
        labels = labels_of(self.context.train_loader)
        classes, counts = (part.tolist() for part in labels.unique(return_counts=True))
        places = [(labels == label).nonzero().view(-1) for label in classes]
        shares = zip(classes, places, apportion(counts, budget), strict=True)
        return [(label, own, scores[own], share) for label, own, share in shares if share]

    def _from_some(self, number: int, places: Tensor, scores: Tensor, share: int) -> tuple[Tensor, Tensor]:
        source = generator(self.context.seed, "pick", number)
        chosen, weights = drawn_by_size(mixed(scores, self.config.uniform), share, source)
        return places[chosen], weights


class ByGradient(AdversarialStrategy):
    """Importance sampling by the lengths of adversarial gradients."""

    Config = ImportanceConfig

    def pick(self, gradients: Gradients, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the sampled rows, and the inverses of their probabilities."""
        lengths = gradients.squared_norms().double().clamp(min=0).sqrt().cpu()
        return drawn_by_size(mixed(lengths, self.config.uniform), budget, generator)


def mixed(scores: Tensor, uniform: float) -> Tensor:
    """Returns ``u / N + (1 - u) s_i / sum s`` (N,) in float64; 1 / N where all scores are 0.

    Args:
        scores: (N,), >= 0.
        uniform: u, the share of the uniform distribution.
    """
    scores = scores.double()
    even = torch.full_like(scores, 1 / len(scores))
    total = float(scores.sum())
    return uniform * even + (1 - uniform) * scores / total if total > 0 else even


def known_scores(losses: Tensor) -> Tensor:
    """Returns scores (N,), >= 0, of losses; unknown ones (NaN) get the largest known one, or 1 if there is none."""
    known = losses[losses.isfinite()].clamp(min=0)
    largest = float(known.max()) if len(known) else 1.0
    return losses.clamp(min=0).nan_to_num(largest)
