"""Checks for masked gradients: what passes, what fails, and that they are the evaluation's own attacks."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from support.brief import shorten
from support.command_line import call
from support.masked_models import trained, write
from support.several import together
from torch import Tensor, nn

from robustcords.attacks.pgd import PGD
from robustcords.data.images import ImageSet
from robustcords.evaluation import ledger
from robustcords.evaluation.attacks.pgd import PGDEvaluation
from robustcords.evaluation.evaluator import classified
from robustcords.evaluation.results import SanityChecks
from robustcords.evaluation.sanity.checks import LEVEL, Sanity, p_value
from robustcords.evaluation.sanity.probe import STEPS
from robustcords.losses.objective import cross_entropy_of
from robustcords.recipe.recipe import UserError
from robustcords.rng import Noise, derive
from robustcords.runtime import collectives
from robustcords.threats.base import ThreatModel

BRIEF = pytest.mark.usefixtures("brief")

CHECKS = [
    "zero gradients",
    "more steps",
    "larger radius",
    "unbounded radius",
    "black-box",
    "random noise",
    "AutoAttack",
]
THREAT = ThreatModel(epsilon=0.1)


def statuses(found: SanityChecks) -> dict[str, str]:
    return {check.name: check.status for check in found.checks}


def sanity(limit: int, threat: ThreatModel = THREAT) -> Sanity:
    return Sanity(threat, limit, PGDEvaluation(steps=10, restarts=2))


def check(kind: str, threat: ThreatModel = THREAT, limit: int = 100) -> SanityChecks:
    _, model, images = trained(kind)
    return sanity(limit, threat).check(model, images, seed=0)


@pytest.mark.parametrize(
    ("norm", "whole"), [("linf", False), ("l2", False), pytest.param("linf", True, marks=pytest.mark.slow)]
)
def test_an_honest_model_passes_everything(norm: str, whole: bool, monkeypatch: pytest.MonkeyPatch):
    if not whole:
        shorten(monkeypatch)
    found = check("honest", ThreatModel(norm=norm, epsilon=0.1 if norm == "linf" else 0.5))
    assert statuses(found) == dict.fromkeys(CHECKS, "pass")
    assert (found.examples, found.attacked, found.norm, found.level) == (100, 95, norm, 0.01)
    assert SanityChecks.model_validate(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("kind", "failing"),
    [
        ("quantised", {"zero gradients", "unbounded radius", "black-box", "random noise", "AutoAttack"}),
        ("saturated", {"zero gradients", "unbounded radius", "black-box", "AutoAttack"}),
        ("shattered", {"unbounded radius", "black-box", "AutoAttack"}),
        ("randomised", {"random noise"}),
    ],
)
def test_masked_gradients_are_noticed(kind: str, failing: set[str], monkeypatch: pytest.MonkeyPatch):
    shorten(monkeypatch, queries=600)  # with fewer, AutoAttack finds no more than PGD
    found = check(kind)
    assert {name for name, status in statuses(found).items() if status == "fail"} == failing
    measured = {each.name: each.measured for each in found.checks}
    assert measured["zero gradients"]["zero"] == (found.attacked if "zero gradients" in failing else 0)
    if kind == "saturated":  # where cross-entropy alone is the matter, the margin says so
        values = measured["black-box"]["p_value"]
        assert values["cross-entropy"] < 1e-6
        assert values["margin"] > 0.5


class Misled(nn.Module):
    """Two classes, on images of grey 0.5; its gradients lead through wrong answers and out of them again.

    With ``one_by_one`` they lead up one pixel after the other, and 4 to 8 pixels that are up are a wrong answer;
    without, up all pixels together, and a mean of 0.54 to 0.58 is.
    """

    def __init__(self, one_by_one: bool) -> None:
        super().__init__()
        self.one_by_one = one_by_one

    def forward(self, x: Tensor) -> Tensor:
        away = (x - 0.5).flatten(1)
        with torch.no_grad():
            up = away > 0.9 * 0.06
            first = ~up & ((~up).cumsum(1) == 1) if self.one_by_one else torch.ones_like(up)
            mean = away.mean(1)
            wrong = (up.sum(1) - 6).abs() <= 2 if self.one_by_one else (mean > 0.04) & (mean < 0.08)
        lead = -(away * first).sum(1)
        right = 1 - 2 * wrong.float() + (lead - lead.detach())
        return torch.stack([right, torch.zeros_like(right)], dim=1)


@BRIEF
@pytest.mark.parametrize(("one_by_one", "name"), [(True, "more steps"), (False, "larger radius")])
def test_an_attack_that_gets_weaker_with_more_effort_is_noticed(one_by_one: bool, name: str):
    grey = ImageSet(torch.full((60, 1, 5, 5), 0.5), torch.zeros(60, dtype=torch.int64), ("a", "b"))
    found = sanity(60, ThreatModel(epsilon=0.06)).check(Misled(one_by_one), grey, seed=0)
    assert statuses(found)[name] == "fail"


@BRIEF
def test_too_few_images_conclude_nothing():
    _, model, images = trained("honest")
    found = sanity(3).check(model, images, seed=0)
    # One image decides the first two; of the last, three of three would be far too many.
    enough = dict.fromkeys(["zero gradients", "unbounded radius", "AutoAttack"], "")
    assert statuses(found) | enough == dict.fromkeys(CHECKS, "not conclusive") | enough
    wrong = ImageSet(images.images[:9], (images.labels[:9] + 1) % 10, images.classes)
    assert set(statuses(sanity(9).check(model, wrong, seed=0)).values()) == {"not conclusive"}


@BRIEF
def test_an_attack_that_breaks_nothing_concludes_nothing():
    found = check("honest", ThreatModel(epsilon=1e-6), limit=40)
    idle = {"more steps", "larger radius", "black-box", "random noise"}
    assert {name for name, status in statuses(found).items() if status == "not conclusive"} == idle


@BRIEF
def test_square_is_left_out_where_it_cannot_run():
    images = ImageSet(torch.rand((20, 1, 4, 4)), torch.zeros(20, dtype=torch.int64), ("a", "b"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    nn.init.constant_(model[1].bias, 0.0)
    model[1].bias.data[0] = 3.0
    found = sanity(20, ThreatModel(norm="l2", epsilon=0.5)).check(model, images, seed=0)
    assert statuses(found)["black-box"] == "not conclusive"


def test_the_p_value_is_the_exact_mcnemar_tests():
    for alone, other, both in product((0, 1, 3, 9), (0, 2, 5), (0, 4)):
        first = torch.tensor([False] * alone + [True] * other + [True] * both + [False] * 3)
        second = torch.tensor([True] * alone + [False] * other + [True] * both + [False] * 3)
        total = alone + other
        expected = sum(math.comb(total, k) for k in range(alone, total + 1)) / 2**total
        assert p_value(first, second) == pytest.approx(expected, rel=1e-12)


def test_an_honest_pair_fails_as_rarely_as_promised():
    draw = torch.Generator().manual_seed(0)
    flags = torch.rand((2, 4000, 200), generator=draw) < 0.5
    failed = sum(p_value(first, second) <= LEVEL for first, second in zip(*flags[:, :400], strict=True))
    assert failed <= 400 * LEVEL + 3 * math.sqrt(400 * LEVEL)


@BRIEF
def test_more_steps_are_pgds_own_iterates(tmp_path: Path):
    _, model, images = trained("honest")
    sanity(100).check(model, images, seed=0, store=tmp_path)
    kept = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    code = next(torch.tensor(each["outcomes"]) for each in kept if each["fingerprint"]["what"] == "sanity: steps")
    clean = next(torch.tensor(each["outcomes"]) for each in kept if each["fingerprint"]["what"] == "clean") > 0
    rows = clean.nonzero().flatten()
    x, y = images.batch(rows)
    for number, steps in enumerate(STEPS):
        attack = PGD(THREAT, steps=steps, step_size=THREAT.epsilon / 4, random_start="uniform")
        x_adv = attack(model, x, cross_entropy_of(y), Noise(derive(0, "sanity-steps"), rows))
        assert torch.equal((code[rows] >> number) % 2 > 0, classified(model, x_adv, y)), steps


class StoppedError(Exception):
    pass


def test_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shorten(monkeypatch, queries=20)
    monkeypatch.setattr(ledger, "chunks", lambda count: torch.arange(count).split(16))
    _, model, images = trained("honest")
    whole = sanity(20).check(model, images, seed=0)

    def stop(what: str, done: int, total: int) -> None:
        if what == "sanity: margin" and done == 16:
            raise StoppedError

    with pytest.raises(StoppedError):
        sanity(20).check(model, images, seed=0, store=tmp_path, on_progress=stop)
    resumed: list[tuple[str, int]] = []
    found = sanity(20).check(
        model, images, seed=0, store=tmp_path, on_progress=lambda what, done, _: resumed.append((what, done))
    )
    assert found == whole
    first = dict(reversed(resumed))
    assert [first[f"sanity: {name}"] for name in ("steps", "margin", "noise")] == [20, 16, 0]


def worker(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    shorten(pytest.MonkeyPatch())
    file = f"file://{folder / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=file, rank=rank, world_size=world)
    found = check("honest", limit=60)
    (folder / f"{rank}.json").write_text(json.dumps([found.to_json(), collectives.world_size()]))
    torch.distributed.destroy_process_group()


@BRIEF
def test_two_processes_find_what_one_does(tmp_path: Path):
    together(worker, 2, 2, tmp_path)
    alone = check("honest", limit=60)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [alone.to_json(), 2]


@BRIEF
def test_the_command_line_reports_them(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "saturated")
    line = ["evaluate", ".", "--sanity", "--attack", "pgd", "--epsilon", "0.1", "--limit", "100"]
    answer = call(capsys, *line, "--output", "report.json")
    assert answer.status == 0, answer.err
    found = json.loads(Path("report.json").read_text())["evaluation"]["last"]["sanity"]
    assert found == check("saturated").to_json()
    for each in found["checks"]:
        assert f"{each['status']}: {each['name']} (last): {each['finding']}" in answer.out.splitlines()
    assert call(capsys, *line, "--output", "beside.md").status == 0
    for text in (Path(name).read_text() for name in ("report.md", "beside.md")):
        assert "## Masked gradients" in text
        for each in found["checks"]:
            assert f"| {each['name']} | {each['status']} | {each['finding']} |" in text
    Path("beside.md").write_text("something else")
    answer = call(capsys, *line, "--output", "beside.md")
    assert (answer.status, "not a report" in answer.err) == (2, True)


def test_by_default_a_few_hundred_images_at_the_recipes_radius():
    from robustcords.experiments.evaluation import Changes

    recipe, _, _ = trained("honest")
    assert Changes(sanity=True).checks(recipe, recipe.evaluation).limit == recipe.evaluation.limit == 150  # type: ignore[union-attr]
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"limit": 0})})
    pgd = recipe.evaluation.pgd
    assert Changes().checks(recipe, recipe.evaluation) is None
    assert Changes(sanity=True).checks(recipe, recipe.evaluation) == Sanity(ThreatModel(epsilon=0.15), 256, pgd)
    assert Changes(sanity=True, limit=0).checks(recipe, recipe.evaluation) == Sanity(ThreatModel(epsilon=0.15), 0, pgd)
    chosen = Changes(sanity=True, limit=30, epsilons=["0.1", "0.2"]).checks(recipe, recipe.evaluation)
    assert chosen == Sanity(ThreatModel(epsilon=0.1), 30, pgd)
    nothing = recipe.model_copy(update={"threat": ThreatModel(epsilon=0)})
    with pytest.raises(UserError, match=r"threat\.epsilon is 0.*--epsilon"):
        Changes(sanity=True).checks(nothing, nothing.evaluation)
