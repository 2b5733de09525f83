"""Orthogonal matching pursuit with rank-one updates, for several problems at once and on any device.

With S the gradients that are held, ``M = (G_SS + ridge I)^-1`` and weights ``w = M c_S``. Taking a gradient, as well as
dropping one, changes M by ``s d d^T`` for one vector d, the weights by a multiple of d, and the correlations with the
residual by the same multiple of ``G_:S d``. So both are the same arithmetic, chosen by masks; no step waits for the
host, and problems that are at different points proceed together.

Steps are made in blocks. Within a block M stays as it is and its changes are kept as vectors; where there are many
candidates, the block considers the most promising of them alone. At the end of the block one matrix product gives the
correlations of all candidates after each of its steps. What follows a step at which another one would have been taken
is then thrown away, so the picks are those of looking at all candidates at every step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 32
"""Steps from one look at all candidates, and at the host, to the next."""
_PLAIN = 200  # gradients held, up to which all candidates are looked at in every step
_NOISE = 1e-12  # a correlation below this share of the largest one at the start is rounding
_DEPENDENT = 1e-12  # a pivot below this share of its diagonal is rounding
_ROUNDING = 1e-13  # error of the normal equations, as a share of the largest correlation, that weights may have
_INACCURATE = 1e-9  # such an error at which M is made anew
_RESOLVED = 1e-14  # of the target's square, below which what is left cannot be distinguished from rounding
_CHECK = 8  # blocks from one such test to the next


class Pursuit:
    """The state of R pursuits.

    Args:
        gram: (R, n, n) float64 products of the candidates; rows and columns beyond a problem's own size are 0.
        targets: (R, n) float64 products with what is to be matched.
        sizes: (R,) how many candidates each problem has.
        budgets: (R,) how many to hold.
        lengths: (R,) the length of what is to be matched.
        ridge: lam >= 0.
        tolerance: end where the residual is below this share of the length.
        screen: how many candidates a block considers; n considers all of them in every step.

    Attributes:
        rows: (R * n, n) the Gram matrices' rows; problem r's begin at ``offsets[r]``.
        squares: (R * n,) of each candidate its own, with the ridge.
        columns: (R, n, slots) of the Gram matrices, those of the candidate in each slot.
        inverse: (R, slots, slots) M, with 0 in the rows and columns of unused slots.
        size: m, the slots in use.
        atoms: (R, slots) int64 the candidate in each slot.
        held: (R, slots) bool whether a slot is in use.
        weights: (R, slots) float64, 0 in unused slots.
        correlations: (R, n) float64 with the residual.
        dependent: (R, n) bool those that are no candidates: found to depend on held ones, or beyond the problem's size.
        done: (R,) bool.
        single: (R,) bool those that ended with their first gradient, whose weight has no ridge in it.
        steps: how many were made and kept.
        discarded: how many were made and thrown away.
    """

    def __init__(
        self,
        gram: Tensor,
        targets: Tensor,
        sizes: Tensor,
        budgets: Tensor,
        lengths: Tensor,
        *,
        ridge: float,
        tolerance: float,
        screen: int,
    ) -> None:
        problems, count = targets.shape
        slots = int(budgets.max()) + BLOCK
        self.gram, self.targets, self.budgets, self.ridge = gram, targets, budgets, ridge
        self.diagonal = gram.diagonal(dim1=1, dim2=2).contiguous()
        self.rows, self.offsets = gram.flatten(0, 1), count * torch.arange(problems, device=targets.device)
        self.squares = (self.diagonal + ridge).flatten()
        self.square = lengths.square()
        # What is left is a difference of numbers as large as the target's square, and no smaller than their rounding.
        self.floor = self.square * max(tolerance**2, _RESOLVED)
        self.noise = _NOISE * targets.abs().amax(1)
        self.screen = min(screen, count)
        self.size = self.steps = self.discarded = self._blocks = 0
        self.atoms = torch.zeros((problems, slots), dtype=torch.int64, device=targets.device)
        self.held = torch.zeros_like(self.atoms, dtype=torch.bool)
        self.weights = targets.new_zeros((problems, slots))
        self.inverse = targets.new_zeros((problems, slots, slots))
        self.columns = targets.new_empty((problems, count, slots))
        self.correlations = targets.clone()
        self.dependent = torch.arange(count, device=targets.device) >= sizes[:, None]
        self.done = torch.zeros(problems, dtype=torch.bool, device=targets.device)
        self._first()

    def taken(self) -> Tensor:
        """Returns (R, n) which candidates are held."""
        mask = torch.zeros_like(self.dependent, dtype=torch.int32)
        return mask.scatter_add(1, self.atoms, self.held.int()) > 0

    def advance(self) -> None:
        """Makes a block of steps, after which problems may be `done`."""
        # The first block ends after a step, as its correlations are not yet those of the weights with the ridge.
        block = _Block(self, 1 if self.steps == 1 else BLOCK)
        for _ in range(block.length):
            block.step()
        after = block.correlations_after() if block.screened else None
        before = self.done
        kept, self.done = block.kept(after)
        self.discarded += block.length * len(kept) - int(kept.sum())
        self.steps += int(kept.max())
        self._adopt(block, kept)
        self._blocks += 1
        if after is None or self._blocks % _CHECK == 0 or (self.done & ~before).any():
            self._look_again()
            self._doubt(self.done & ~before)
        else:
            self.correlations = after.gather(1, kept[:, None, None].expand(-1, 1, after.shape[2]))[:, 0]

    def _doubt(self, ended: Tensor) -> None:
        """Resumes what ended, (R,), by a residual that only rounding had below the tolerance.

        The steps find the residual as if the weights were exact; here it is that of the weights as they are.
        """
        m = self.size
        at_held = self.correlations.gather(1, self.atoms[:, :m])
        left = self.square - (self.weights[:, :m] * (self.targets.gather(1, self.atoms[:, :m]) + at_held)).sum(1)
        rest = self.correlations.masked_fill(self.dependent | self.taken(), -math.inf).amax(1)
        early = ended & (self.held.sum(1) < self.budgets) & (rest > self.noise) & (left > self.floor * (1 + 1e-6))
        self.done = self.done & ~early

    def _first(self) -> None:
        """Takes the first gradient, whose weight is found without the ridge, as in CORDS."""
        best, atom = self.correlations.masked_fill(self.dependent, -math.inf).max(1)
        hopeful = best > self.noise
        diagonal = self.diagonal.gather(1, atom[:, None])[:, 0]
        self.atoms[:, 0], self.held[:, 0] = atom, hopeful
        self.weights[:, 0] = torch.where(hopeful, best / diagonal, 0)
        self.inverse[:, 0, 0] = torch.where(hopeful, 1 / (diagonal + self.ridge), 0)
        self.columns[:, :, 0] = self.rows.index_select(0, atom + self.offsets)
        self.size = self.steps = 1
        self.correlations = self.targets - self.weights[:, :1] * self.columns[:, :, 0]
        left = self.square - self.weights[:, 0] * best
        rest = self.correlations.masked_fill(self.dependent | self.taken(), -math.inf).amax(1)
        self.done = ~hopeful | (self.budgets == 1) | (left <= self.floor) | (rest <= self.noise)
        self.single = self.done.clone()

    def _adopt(self, block: _Block, kept: Tensor) -> None:
        """Takes over the state of a block after so many of its steps, (R,) ``kept``."""
        m, slots = self.size, block.slots
        at = kept[:, None, None].expand(-1, 1, slots)
        self.atoms[:, :slots] = block.atoms
        # A problem that is done keeps its first weight, which a block starts by giving the ridge.
        moved = (kept > 0)[:, None]
        self.weights[:, :slots] = torch.where(moved, block.weights_after.gather(1, at)[:, 0], self.weights[:, :slots])
        self.held[:, :slots] = block.held_after.gather(1, at)[:, 0] > 0
        made = torch.arange(block.length, device=kept.device) < kept[:, None]
        rejected = torch.zeros_like(self.correlations).scatter_add_(
            1, block.atoms[:, m:], (block.rejected & made).double()
        )
        self.dependent |= rejected > 0
        inverse = self.inverse[:, :slots, :slots]
        changes = inverse[:, m:].clone()
        inverse[:, m:] = 0
        scaled = (changes * torch.where(made, block.scales, 0)[:, :, None]).transpose(1, 2)
        for each, left, right in zip(inverse, scaled, changes, strict=True):
            each.addmm_(left, right)
        self._close_gaps(slots)

    def _close_gaps(self, slots: int) -> None:
        """Moves the last ones held into the slots of those that were dropped."""
        held = self.held[:, :slots]
        self.size = m = int(held.sum(1).max())
        place = torch.arange(slots, device=held.device)
        movers, gaps = held & (place >= m), ~held & (place < m)
        if not (count := int(movers.sum(1).max())):
            self._clear_from(m, slots)
            return
        source, goal = (mask.byte().argsort(dim=1, descending=True, stable=True)[:, :count] for mask in (movers, gaps))
        source = torch.where(movers.gather(1, source), source, goal)
        for rows in (self.atoms, self.held, self.weights):
            rows.scatter_(1, goal, rows.gather(1, source))
        for r in range(len(held)):
            # Indexing, as index_select makes a contiguous copy of the whole part first.
            self.columns[r, :, goal[r]] = self.columns[r, :, source[r]]
            inverse = self.inverse[r, :slots, :slots]
            inverse[goal[r]] = inverse[source[r]]
            inverse[:, goal[r]] = inverse[:, source[r]]
        self._clear_from(m, slots)

    def _clear_from(self, m: int, slots: int) -> None:
        self.held[:, m:slots] = False
        self.weights[:, m:slots] = 0
        self.inverse[:, m:slots, :slots] = 0
        self.inverse[:, :m, m:slots] = 0

    def _look_again(self) -> None:
        """Takes what rounding has piled up out of the weights, and finds all correlations from them."""
        m = self.size
        atoms, held, weights = self.atoms[:, :m], self.held[:, :m], self.weights[:, :m]
        self._correlate()
        # A problem that ended with its first weight has no ridge in it, so for that one this is no error.
        error = (self.correlations.gather(1, atoms) - self.ridge * weights) * held * ~self.single[:, None]
        share = error.abs().amax(1) / self.targets.abs().amax(1)
        if not bool((share > _ROUNDING).any()):
            return
        weights += torch.bmm(self.inverse[:, :m, :m], error[:, :, None])[:, :, 0] * held
        for r in (share > _INACCURATE).nonzero()[:, 0].tolist():
            slots = held[r].nonzero()[:, 0]
            chosen = atoms[r, slots]
            matrix = self.gram[r][chosen][:, chosen] + self.ridge * torch.eye(len(chosen)).to(self.gram)
            inverse = torch.linalg.pinv(matrix, hermitian=True)
            self.inverse[r, slots[:, None], slots] = inverse
            weights[r, slots] = inverse @ self.targets[r, chosen]
        self._correlate()

    def _correlate(self) -> None:
        m = self.size
        explained = torch.bmm(self.columns[:, :, :m], self.weights[:, :m, None])[:, :, 0]
        self.correlations = self.targets - explained


class _Block:
    """Some steps of a pursuit, which `Pursuit` then adopts as far as they were right.

    Slots from ``pursuit.size`` on are new: step s takes its gradient into slot ``size + s``, or leaves that one unused
    where it drops one. The vectors d are kept in the rows of the inverse that belong to the new slots.
    """

    def __init__(self, pursuit: Pursuit, length: int) -> None:
        self.pursuit, self.length, self.start = pursuit, length, pursuit.size
        m, self.slots = pursuit.size, pursuit.size + length
        problems, count = pursuit.targets.shape
        self.atoms = pursuit.atoms[:, : self.slots].clone()
        self.held = pursuit.held[:, : self.slots].double()
        self.weights = pursuit.weights[:, : self.slots].clone()
        if pursuit.steps == 1:
            self.weights[:, 0] = pursuit.inverse[:, 0, 0] * pursuit.targets.gather(1, self.atoms[:, :1])[:, 0]
        self.closed = pursuit.dependent | pursuit.taken()
        self.screened = m >= _PLAIN and pursuit.steps > 1 and pursuit.screen < count
        self._look_at()
        new = pursuit.targets.new_zeros
        self.goes_on = ~pursuit.done[:, None]
        self.scales = new((problems, length))
        self._bests: list[Tensor] = []
        self._changed: list[Tensor] = []
        self.weights_after = new((problems, length + 1, self.slots))
        self.held_after = new((problems, length + 1, self.slots))
        self.weights_after[:, 0], self.held_after[:, 0] = self.weights, self.held
        self._done = 0

    def _look_at(self) -> None:
        """Chooses the candidates that the steps look at, and brings what belongs to them together.

        ``places`` says where among the candidates what a slot holds is. Those that are not among them are sent to one
        more place behind the last.
        """
        pursuit, m = self.pursuit, self.start
        open_correlations = pursuit.correlations.masked_fill(self.closed, -math.inf)
        if self.screened:
            promising = open_correlations.topk(pursuit.screen, dim=1).indices
            self.candidates = promising.sort(dim=1).values  # of equal ones the first is taken
            self.cross = pursuit.targets.new_empty((*self.candidates.shape, self.slots))
            for r, rows in enumerate(self.candidates):
                self.cross[r, :, :m] = pursuit.columns[r].index_select(0, rows)[:, :m]
            self.places = torch.full_like(self.atoms, pursuit.screen)
        else:
            self.candidates = torch.arange(pursuit.targets.shape[1], device=self.atoms.device).expand(
                len(self.atoms), -1
            )
            self.cross = pursuit.columns[:, :, : self.slots]
            self.places = self.atoms.clone()
        self.at_place = torch.cat([self.candidates, torch.zeros_like(self.candidates[:, :1])], dim=1)
        chosen = open_correlations.gather(1, self.candidates)
        self.correlations = torch.cat([chosen, torch.full_like(chosen[:, :1], -math.inf)], dim=1)

    def step(self) -> None:
        """Drops the most negative weight where there is one, and else takes what correlates most."""
        pursuit, s = self.pursuit, self._done
        slot = self.start + s
        lowest, drop_slot = self.weights.min(1, keepdim=True)
        best, place = self.correlations.max(1, keepdim=True)
        drop = lowest < 0
        dropping = drop.double()
        taking = 1 - dropping
        atom = self.at_place.gather(1, place)
        at = atom[:, 0] + pursuit.offsets
        row = pursuit.rows.index_select(0, at)
        diagonal = pursuit.squares.index_select(0, at)[:, None]

        # What M changes by, and how far: along M e_j for a gradient that goes, along [-M g, 1] for one that comes.
        products = row.gather(1, self.atoms)
        vector = (products * self.held).mul_(taking).scatter_add_(1, drop_slot, dropping)
        change = self._apply_inverse(vector)
        pivot = diagonal * taking - (vector * change).sum(1, keepdim=True)
        grown = (pivot > _DEPENDENT * diagonal).logical_and_(self.goes_on)  # a drop's pivot is negative
        scale = torch.where(grown.logical_or(drop), pivot.reciprocal(), 0)
        amount = scale * torch.where(drop, lowest, best)

        change.mul_(self.held).mul_(dropping - taking)
        change[:, slot] = grown[:, 0]
        pursuit.inverse[:, slot, : self.slots] = change
        self.held.scatter_add_(1, drop_slot, -dropping)
        self.held[:, slot] = grown[:, 0]
        change.mul_(amount)
        self.weights = torch.add(self.weights, change, out=self.weights_after[:, s + 1]).mul_(self.held)
        self.held_after[:, s + 1] = self.held

        self.cross[:, :, slot] = row.gather(1, self.candidates) if self.screened else row
        explained = torch.bmm(self.cross[:, :, : slot + 1], change[:, : slot + 1, None])[:, :, 0]
        self.correlations[:, :-1].sub_(explained)
        # What was taken is shut. What is dropped is open again, and its correlation then is minus the amount.
        moved = torch.where(drop, self.places.gather(1, drop_slot), place)
        self.correlations.scatter_(1, moved, torch.where(drop, -amount, -math.inf))

        self.atoms[:, slot], self.places[:, slot] = atom[:, 0], place[:, 0]
        self.scales[:, s] = scale[:, 0]
        self._bests.append(best)
        self._changed.append(grown | drop)
        self._done += 1

    def _apply_inverse(self, vector: Tensor) -> Tensor:
        """Returns (R, slots) the inverse, with its changes so far, times a vector."""
        m, slot = self.start, self.start + self._done
        rows = self.pursuit.inverse[:, :slot, : self.slots]
        products = torch.bmm(rows, vector[:, :, None])[:, :, 0]
        whole = torch.bmm((self.scales[:, : self._done] * products[:, m:])[:, None], rows[:, m:])[:, 0]
        whole[:, :m] += products[:, :m]
        return whole

    @property
    def bests(self) -> Tensor:
        """(R, length) the largest correlation before each step, among the candidates it looked at."""
        return torch.cat(self._bests, dim=1)

    @property
    def rejected(self) -> Tensor:
        """(R, length) whether a step found a gradient that depends on the held ones."""
        return ~torch.cat(self._changed, dim=1)

    def correlations_after(self) -> Tensor:
        """Returns (R, length + 1, n) the correlations of all candidates before and after each step."""
        pursuit, m = self.pursuit, self.start
        for r, atoms in enumerate(self.atoms[:, m:]):
            pursuit.columns[r, :, m : self.slots] = pursuit.gram[r].index_select(0, atoms).T
        change = self.weights_after[:, 1:] - self.weights_after[:, :1]
        columns = pursuit.columns[:, :, : self.slots].transpose(1, 2)
        before = pursuit.correlations[:, None]
        after = before.new_empty((len(change), self.length + 1, before.shape[2]))
        after[:, :1] = before
        torch.baddbmm(before, change, columns, alpha=-1, out=after[:, 1:])
        return after

    def kept(self, after: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns (R,) how many steps are right, and (R,) whether the pursuit is at its end after them.

        Args:
            after: of `correlations_after`, where the steps did not look at all candidates.
        """
        pursuit = self.pursuit
        weights, counts = self.weights_after, self.held_after.sum(2)
        bests = self.bests
        outside = torch.full_like(bests, -math.inf) if after is None else self._best_outside(after)
        solved = weights.amin(2) >= 0
        targets = pursuit.targets.gather(1, self.atoms)[:, None]
        left = pursuit.square[:, None] - (weights * (targets + pursuit.ridge * weights)).sum(2)
        near = left <= pursuit.floor[:, None]
        near[:, 0] = False  # that was looked at when the last block ended
        over = solved & (near | (counts >= pursuit.budgets[:, None]))
        over[:, :-1] |= solved[:, :-1] & (torch.maximum(bests, outside) <= pursuit.noise[:, None])
        wrong = torch.zeros_like(over)
        wrong[:, 1:-1] = solved[:, 1:-1] & (outside[:, 1:] >= bests[:, 1:])
        stop = over | wrong
        stop[:, -1] = True
        kept = stop.int().argmax(1)
        done = pursuit.done | over.gather(1, kept[:, None])[:, 0]
        return torch.where(pursuit.done, 0, kept), done

    def _best_outside(self, after: Tensor) -> Tensor:
        """Returns (R, length) the largest correlation before each step among the candidates it did not look at.

        Those are the ones that were not chosen for the block, and those that were held and that a step dropped.
        """
        m = self.start
        seen = self.closed.scatter(1, self.candidates, True)
        others = after[:, :-1].masked_fill(seen[:, None], -math.inf).amax(2)
        old = self.atoms[:, None, :m].expand(-1, self.length, -1)
        dropped = self.held_after[:, :1, :m] > self.held_after[:, :-1, :m]
        return torch.maximum(others, after[:, :-1].gather(2, old).masked_fill(~dropped, -math.inf).amax(2))
