"""Attacking a batch by a plan: the images of each example attacked alone, and no pass that nobody asked for."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from robustcords.attacks.base import Attack, CleanLogits
from robustcords.attacks.fgsm import FGSM
from robustcords.attacks.pgd import PGD
from robustcords.losses.context import Moment
from robustcords.losses.mart import MART
from robustcords.losses.sat import SAT
from robustcords.losses.trades import TRADES
from robustcords.methods.efforts.base import Effort, Kinds, Plan
from robustcords.methods.efforts.batch import AdversarialBatch, attack_batch
from robustcords.methods.efforts.uniform import Uniform
from robustcords.rng import Noise
from robustcords.threats.base import ThreatModel

THREAT = ThreatModel(epsilon=0.1)
COUNT = 12
NOISE = Noise(5, torch.arange(50, 50 + COUNT))


class Counting(nn.Module):
    """A linear network in float64 that keeps the size of every batch."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(9, 4)).double()
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        found: Tensor = self.layers(x)
        return found


@pytest.fixture
def problem() -> tuple[Counting, Tensor, Tensor]:
    x = torch.rand((COUNT, 1, 3, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Counting(), x, torch.arange(COUNT) % 4


class Planned(Effort):
    """Plans what it is given, and keeps what it is told."""

    observes: ClassVar[bool] = True

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.planned, self.asked, self.seen = plan, [], []  # type: ignore[var-annotated]

    def plan(self, *arguments: Any) -> Plan:
        self.asked.append(arguments)
        return self.planned

    def observe(self, correct: Tensor) -> None:
        self.seen.append(correct)


class Silent(Planned):
    """The same, but does not want to be told."""

    observes: ClassVar[bool] = False


def attacked(problem: Any, effort: Effort | None, **parts: Any) -> AdversarialBatch:
    return attack_batch(*problem, NOISE, **{"attack": PGD(THREAT), "loss": SAT(), "effort": effort, **parts})


@pytest.mark.parametrize("loss", [SAT(), TRADES(), MART()], ids=["sat", "trades", "mart"])
@pytest.mark.parametrize("sizes", [True, False], ids=["sizes", "own sizes"])
def test_each_example_is_attacked_as_it_would_be_alone(problem: Any, sizes: bool, loss: Any):
    model, x, y = problem
    steps = torch.tensor([0, 3, 1, 3, 0, 10, 1, 2, 3, 3, 10, 0])
    size = torch.tensor([0.03, 0.05, 0.02] * 4, dtype=torch.float64)
    found = attacked(problem, Silent(Plan(steps, size if sizes else None)), loss=loss).images
    for row in range(COUNT):
        one = slice(row, row + 1)
        with torch.no_grad():
            objective = loss.objective(y[one], CleanLogits(model, x[one]))
        attack = PGD(THREAT, steps=int(steps[row]), step_size=float(size[row]) if sizes else None)
        expected = attack(model, x[one], objective, NOISE[one])
        torch.testing.assert_close(found[one], expected, rtol=0, atol=1e-9)
        assert torch.equal(found[row], x[row]) == (steps[row] == 0)


class Grouped(PGD):
    """PGD whose search somebody wrote anew, so that it says nothing of steps that differ by example."""

    def search(self, *arguments: Any) -> Tensor:
        return super().search(*arguments)


STEPS = torch.tensor([2, 1, 0, 2, 1, 2, 2, 0, 1, 2, 2, 2])
SIZES = torch.tensor([0.03, 0.05, 0.02] * 4, dtype=torch.float64)


@pytest.mark.parametrize("loss", [SAT(), TRADES(), MART()], ids=["sat", "trades", "mart"])
@pytest.mark.parametrize("sizes", [SIZES, None], ids=["sizes", "own sizes"])
@pytest.mark.parametrize("random_start", ["auto", "none", "uniform"])
def test_one_batch_and_a_batch_for_each_kind_are_the_same_to_the_last_bit(
    problem: Any, random_start: Any, sizes: Tensor | None, loss: Any
):
    if loss.relative_to_clean and random_start == "none":
        pytest.skip("no gradient there")
    steps = torch.tensor([0, 3, 1, 3, 0, 10, 1, 2, 3, 3, 10, 0])
    together, grouped = (
        attacked(problem, Silent(Plan(steps, sizes)), loss=loss, attack=kind(THREAT, random_start=random_start)).images
        for kind in (PGD, Grouped)
    )
    assert torch.equal(together, grouped)


def test_an_example_takes_no_part_in_passes_after_its_own(problem: Any):
    kinds = Kinds(("many", "none", "one"), torch.tensor([0, 2, 1, 0, 2, 0, 0, 1, 2, 0, 0, 0]))
    found = attacked(problem, Silent(Plan(STEPS, kinds=kinds)))
    assert problem[0].sizes == [10, 7]
    assert found.counts == {"many": 7, "none": 2, "one": 3}
    problem[0].sizes.clear()
    assert attacked(problem, Silent(Plan(STEPS)), attack=Grouped(THREAT)).counts == {}
    assert problem[0].sizes == [7, 7, 3]


@pytest.mark.parametrize(("loss", "clean"), [(SAT(), []), (TRADES(), [COUNT])], ids=["sat", "trades"])
def test_an_effort_that_does_not_ask_costs_no_pass(problem: Any, loss: Any, clean: list[int]):
    for effort in (None, Uniform(), Silent(Plan(torch.full((COUNT,), 2)))):
        attacked(problem, effort, loss=loss, attack=PGD(THREAT, steps=2))
        assert problem[0].sizes == [*clean, COUNT, COUNT]
        problem[0].sizes.clear()


def test_all_alike_is_the_recipes_attack_to_the_last_bit(problem: Any):
    model, x, y = problem
    attack = PGD(THREAT, steps=4, step_size=0.07, random_start="none")
    expected = attack(model, x, SAT().objective(y, CleanLogits(model, x)), NOISE)
    assert torch.equal(attacked(problem, Uniform(), attack=attack).images, expected)
    # As many steps as the attack's, without a step size: the attack as it is.
    assert torch.equal(attacked(problem, Silent(Plan(torch.full((COUNT,), 4))), attack=attack).images, expected)
    usual = attacked(problem, Silent(Plan(torch.full((COUNT,), 5))), attack=attack).images
    assert torch.equal(usual, attack.with_effort(5)(model, x, SAT().objective(y, CleanLogits(model, x)), NOISE))


def test_what_is_observed_is_who_is_right_under_attack(problem: Any):
    model, x, y = problem
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    y[0] = (y[0] + 1) % 4
    steps = torch.tensor([0, 0, *[3] * 10])
    effort = Planned(Plan(steps))
    found = attacked((model, x, y), effort, attack=PGD(ThreatModel(epsilon=0.3)))
    with torch.no_grad():
        expected = model(found.images).argmax(dim=1) == y
    (seen,) = effort.seen
    assert torch.equal(seen, expected)
    assert not seen[0] and seen[1] and 0 < int(seen.sum()) < COUNT - 1


def test_the_plan_is_made_for_this_moment(problem: Any):
    model, x, y = problem
    effort, moment, attack = Planned(Plan(torch.zeros(COUNT).long())), Moment(3, 7, 0.5), PGD(THREAT)
    attacked(problem, effort, attack=attack, moment=moment)
    assert model.sizes == [COUNT], "nobody was attacked, so that whoever is right is right under attack"
    given, clean, labels, when, generator = effort.asked[0]
    assert (given, when) == (attack, moment)
    assert torch.equal(labels, y)
    with torch.no_grad():
        torch.testing.assert_close(clean(), model(x))
    assert torch.equal(generator.keys, NOISE.keys)
    assert not torch.equal(generator.uniform((3,)), NOISE.uniform((3,))), "its numbers are not the attack's"


@pytest.mark.parametrize("attack", [PGD(THREAT), FGSM(THREAT), PGD(THREAT, steps=0)], ids=["pgd", "fgsm", "none"])
def test_a_share_without_examples(problem: Any, attack: Attack):
    model, x, y = problem
    effort = Planned(Plan(torch.zeros(0).long()))
    none = Noise(5, NOISE.keys[:0])
    for each in (Uniform(), effort):
        assert attack_batch(model, x[:0], y[:0], none, attack=attack, loss=SAT(), effort=each).images.shape == (
            0,
            1,
            3,
            3,
        )
    assert len(effort.seen[0]) == 0, "it is told so, as it may wait for other processes"
