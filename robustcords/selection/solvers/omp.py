"""Non-negative orthogonal matching pursuit on a Gram matrix.

The problem is ``min || sum_S w_i g_i - b ||^2 + lam ||w||^2`` over w >= 0 and ``|S| <= k`` (Killamsetty et al. 2021,
Alg. 2; Li et al. 2023, Eq. 6). The path is the one of CORDS' ``OrthogonalMP_REG_Parallel_V1``: take the gradient that
correlates most with the residual, solve, drop the most negative weight and solve again while there is one. It differs
where that solver goes wrong: a held gradient is never taken again, and the search continues until k are held or none
correlates positively.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from scipy.optimize import nnls
from torch import Tensor

from robustcords.errors import UserError
from robustcords.selection.gradients.candidates import Group, Picked
from robustcords.selection.gradients.factors import Gradients, LastLayerGradients
from robustcords.selection.solvers.direction_pursuit import DirectionPursuit, least_ridge
from robustcords.selection.solvers.gram import gram_matrix
from robustcords.selection.solvers.pursuit import Pursuit

_PATIENCE = 4  # picks, as a multiple of k, after which dropping and taking is held to go round in circles
_LARGEST_GRAM = 12_000  # gradients whose products are all kept (1.2 GB)
_LARGEST_DIRECTION = 12_000  # entries of a direction whose square matrix is kept (1.2 GB)
_MOST_SETTLED = 3000  # rows that are solved by least squares over w >= 0 where a pursuit goes round in circles
_OVERSHOT = 1e-9  # a negative weight of this share of the largest is no rounding
_SCREEN = 512  # candidates that a block of steps considers on a CPU; an accelerator considers all as quickly
_TOGETHER = 1e9  # bytes of the problems that are solved at a time


@dataclass(frozen=True)
class Problem:
    """One group to choose from.

    Attributes:
        gradients: N candidates.
        target: (C, 1 + E) the direction to match.
        budget: k, from 1 to N.
    """

    gradients: Gradients
    target: Tensor
    budget: int


OnPick = Callable[[int, int], None]
"""Called with how many gradients are chosen, and how many will be."""


@dataclass(frozen=True)
class MatchingPursuit:
    """GRAD-MATCH's choice: the weighted examples whose gradients add up to a target.

    The target is the sum of all candidates' gradients, or the mean validation gradient as many times.

    Attributes:
        lam: ridge on the weights, >= 0, in units of a squared gradient.
        eps: stop where the residual's length is below this share of the target's.
    """

    lam: float
    eps: float

    def pick(
        self, gradients: Gradients, validation: LastLayerGradients | None, budget: int, generator: torch.Generator
    ) -> Picked:
        """Returns rows (k,), unique, and their weights (k,), as `match` finds them.

        Args:
            gradients: N candidates.
            validation: of the validation examples, whose mean is to be matched; None for the candidates' own sum.
            budget: k, from 1 to N.
            generator: not used: nothing is drawn at random.
        """
        del generator
        return match(_problem(gradients, validation, budget), ridge=self.lam, tolerance=self.eps)

    def pick_all(self, groups: Sequence[Group], on_pick: OnPick | None = None) -> list[Picked]:
        """Returns what `pick` does for each of several groups; see `match_all`."""
        problems = [_problem(group.gradients, group.validation, group.budget) for group in groups]
        return match_all(problems, ridge=self.lam, tolerance=self.eps, on_pick=on_pick)


def _problem(gradients: Gradients, validation: LastLayerGradients | None, budget: int) -> Problem:
    target = gradients.sum() if validation is None else validation.sum() * (len(gradients) / len(validation))
    return Problem(gradients, target, budget)


def match(problem: Problem, *, ridge: float, tolerance: float, on_pick: OnPick | None = None) -> Picked:
    """Returns the gradients whose weighted sum comes near a target, and their weights.

    Where the pursuit ends early (the rank is reached, the residual is below the tolerance, or no gradient points the
    target's way any more), the other places go to the gradients that correlate most with what is left, with weight 0:
    any other weight would move the sum away from the one that was found.

    Args:
        problem: what to choose from, and how many.
        ridge: lam >= 0, in units of a squared gradient.
        tolerance: stop where the residual's length is below this share of the target's.
        on_pick: called now and then where there are more than 12,000 candidates, which takes minutes.

    Raises:
        UserError: there are more than 12,000 candidates, and a direction has more than 12,000 entries.
    """
    return _solve([problem], ridge, tolerance, on_pick)[0]


def match_all(
    problems: Sequence[Problem], *, ridge: float, tolerance: float, on_pick: OnPick | None = None
) -> list[Picked]:
    """Returns what `match` does for several problems.

    On a CPU each in one thread, several of them at a time, so that the choice does not depend on how many there are; on
    an accelerator side by side. Either way as many at a time as 1 GB holds.
    """
    batches = _batches(problems)
    threads = torch.get_num_threads()
    if not problems or threads == 1 or problems[0].target.device.type != "cpu":
        return [found for batch in batches for found in _solve(batch, ridge, tolerance, on_pick)]
    workers = min(threads, len(batches), max(1, int(_TOGETHER / max(map(_bytes, problems)))))
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            parts = pool.map(lambda batch: _solve(batch, ridge, tolerance, on_pick), batches)
            return [found for part in parts for found in part]
    finally:
        torch.set_num_threads(threads)  # the workers' setting is in part that of the whole process


def refuse_too_large(candidates: int, entries: int) -> None:
    """Checks that a problem's products or the square of its directions can be kept.

    Raises:
        UserError: there are more than 12,000 candidates, and a direction has more than 12,000 entries.
    """
    if candidates > _LARGEST_GRAM and entries > _LARGEST_DIRECTION:
        raise UserError(
            f"matching pursuit among {candidates:,} candidates at once needs gradients of at most "
            f"{_LARGEST_DIRECTION:,} entries, and these have {entries:,}: set selector.granularity = "
            '"per_class", or selector.linear_layer = false'
        )


def _by_directions(problem: Problem, ridge: float) -> bool:
    """Returns whether a problem is solved with the square of its directions.

    It has to be where its candidates' products cannot be kept. On a CPU it is faster too where a direction has fewer
    entries than gradients are held, and gives the same as long as the ridge is not raised.
    """
    count, entries = len(problem.gradients), problem.target.numel()
    if count > _LARGEST_GRAM:
        return True
    fewer = problem.target.device.type == "cpu" and entries < problem.budget
    return fewer and ridge >= least_ridge(problem.gradients)


def _bytes(problem: Problem) -> int:
    """Returns the memory that solving a problem with its products takes."""
    count = len(problem.gradients)
    return 8 * (count * (count + problem.budget) + problem.budget**2)


def _batches(problems: Sequence[Problem]) -> list[list[Problem]]:
    """Returns which problems are solved side by side: on an accelerator, as many as there is room for once padded."""
    batches: list[list[Problem]] = []
    largest = 0
    for problem in problems:
        alone = problem.target.device.type == "cpu" or len(problem.gradients) > _LARGEST_GRAM
        largest = max(largest, _bytes(problem))
        if alone or not batches or largest * (1 + len(batches[-1])) > _TOGETHER:
            batches.append([])
            largest = _bytes(problem)
        batches[-1].append(problem)
    return batches


def _solve_by_directions(problem: Problem, ridge: float, tolerance: float, on_pick: OnPick | None) -> Picked:
    """Solves a problem with the square of its directions."""
    refuse_too_large(len(problem.gradients), problem.target.numel())
    target = problem.target.double()
    pursuit = DirectionPursuit(problem.gradients, target, problem.budget, ridge=ridge, tolerance=tolerance)
    while not (over := pursuit.advance()) and pursuit.steps < _PATIENCE * problem.budget:
        if on_pick and len(problem.gradients) > _LARGEST_GRAM:
            on_pick(pursuit.count, problem.budget)
    return _completed(problem, *pursuit.result(), pursuit.correlations, pursuit.taken, ridge=ridge, solved=over)


def _settled(problem: Problem, rows: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Returns the rows, at most k, and weights for them, where a pursuit's own weights are not those of a solution.

    With dropping, a pursuit need not come nearer at every pick; where few dimensions are to be matched by gradients
    that do not point there, it can come back to what it held before. The weights are those of least squares over
    w >= 0, or, for very many rows, equal.
    """
    rows = rows[: problem.budget]
    if len(rows) > _MOST_SETTLED:
        total = problem.gradients.rows(rows).sum()
        share = (total * problem.target.double()).sum() / (total.square().sum() + ridge * len(rows))
        return rows, share.clamp(min=0).expand(len(rows)).clone()
    held = problem.gradients.rows(rows).double()
    values, vectors = torch.linalg.eigh(held.products(held))
    values = values.clamp(min=0) + ridge
    roots = values.sqrt()
    right = (vectors.T @ held.inner(problem.target.double())) / roots
    right = torch.where(values > 1e-12 * values.max(), right, 0)
    weights, _ = nnls((roots[:, None] * vectors.T).cpu().numpy(), right.cpu().numpy(), maxiter=30 * len(rows))
    return rows, torch.from_numpy(weights).to(roots)


@torch.no_grad()
def _solve(batch: Sequence[Problem], ridge: float, tolerance: float, on_pick: OnPick | None) -> list[Picked]:
    """Solves problems side by side, or a single one in whichever way suits it."""
    if _by_directions(batch[0], ridge):
        return [_solve_by_directions(batch[0], ridge, tolerance, on_pick)]
    return _solve_by_products(batch, ridge, tolerance)


def _solve_by_products(batch: Sequence[Problem], ridge: float, tolerance: float) -> list[Picked]:
    """Solves problems side by side, padded to the largest."""
    sizes = [len(problem.gradients) for problem in batch]
    device = batch[0].target.device
    budgets = torch.tensor([problem.budget for problem in batch], device=device)
    gram = torch.empty((len(batch), max(sizes), max(sizes)), dtype=torch.float64, device=device)
    targets = gram.new_zeros(gram.shape[:2])
    for r, (problem, size) in enumerate(zip(batch, sizes, strict=True)):
        gradients = problem.gradients.double()
        gram_matrix(gradients, out=gram[r, :size, :size])
        gram[r, size:], gram[r, :, size:] = 0, 0
        targets[r, :size] = gradients.inner(problem.target.double())
    lengths = torch.stack([problem.target.double().norm() for problem in batch])
    count = torch.tensor(sizes, device=device)
    screen = _SCREEN if device.type == "cpu" else max(sizes)
    pursuit = Pursuit(gram, targets, count, budgets, lengths, ridge=ridge, tolerance=tolerance, screen=screen)
    while not pursuit.done.all() and pursuit.steps < _PATIENCE * int(budgets.max()) + 1:
        pursuit.advance()
    taken = pursuit.taken()
    correlations = pursuit.correlations.masked_fill(pursuit.dependent, torch.finfo(torch.float64).min)
    matches = []
    for r, (problem, size) in enumerate(zip(batch, sizes, strict=True)):
        slots = pursuit.held[r].nonzero()[:, 0]
        held = pursuit.atoms[r, slots], pursuit.weights[r, slots], correlations[r, :size], taken[r, :size]
        matches.append(_completed(problem, *held, ridge=ridge, solved=bool(pursuit.done[r])))
    return matches


def _completed(
    problem: Problem, rows: Tensor, weights: Tensor, correlations: Tensor, taken: Tensor, *, ridge: float, solved: bool
) -> Picked:
    """Returns what a pursuit holds, with weights of its own making where it has not solved the problem.

    There are as many gradients as were asked for, the missing ones with weight 0.

    Args:
        problem: which.
        rows: (m,) those that are held.
        weights: (m,) theirs.
        correlations: (N,) with the residual; the lowest of all for those that depend on held ones, which come last.
        taken: (N,) bool which are held.
        ridge: lam.
        solved: whether the pursuit came to its end.
    """
    # The last look at an ill-conditioned problem may have moved a weight below 0, beyond rounding.
    if not solved or (len(weights) and float(weights.min()) < -_OVERSHOT * float(weights.max())):
        rows, weights = _settled(problem, rows, ridge)
    order = correlations.double().masked_fill(taken, -math.inf).argsort(descending=True, stable=True)
    rest = order[: problem.budget - len(rows)]
    weights = torch.cat([weights.clamp(min=0), weights.new_zeros(len(rest))])
    return torch.cat([rows, rest]).cpu(), weights.cpu()
