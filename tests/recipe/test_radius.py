"""Everything follows from the radius: step sizes, radii to report, and what is said where they do not go together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cases import cases
from support.command_line import call, settings
from torch import nn

from robustcords.attacks.fgsm import FGSM
from robustcords.attacks.pgd import PGD
from robustcords.data.images import ImageSet
from robustcords.errors import UserError
from robustcords.evaluation.attacks.pgd import PGDEvaluation
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluate import evaluate
from robustcords.evaluation.results import Check
from robustcords.evaluation.sanity.checks import Sanity
from robustcords.experiments import build
from robustcords.experiments.evaluation import Changes
from robustcords.methods.efforts.bullet import Bullet
from robustcords.recipe import recipe
from robustcords.selection.gradient_based_config import AdversarialConfig
from robustcords.threats.base import ThreatModel

BASE: dict[str, Any] = {"data": {"name": "digits"}, "model": {"name": "resnet8"}, "bullet": {}}
PAPER = ThreatModel(epsilon=8 / 255)


def parsed(**tables: Any) -> recipe.Recipe:
    return recipe.parse({**BASE, **tables})


def test_at_8_of_255_everything_is_the_papers_to_the_last_bit():
    found = parsed()
    attack: Any = found.attack
    assert attack.step_size == 2 / 255
    effort: Any = found.effort
    assert dict(effort.step_size) == {"outlier": 2 / 255, "robust": 6 / 255, "boundary": 2 / 255}
    pgd, autoattack = found.evaluation.pgd, found.evaluation.autoattack
    assert pgd is not None
    assert autoattack is not None
    assert (pgd.step_size, pgd.epsilons) == (2 / 255, [4 / 255, 8 / 255, 16 / 255])
    assert autoattack.epsilons == [8 / 255]
    assert FGSM(PAPER).config.step_size == 10 / 255
    training = PGD(PAPER, steps=10)
    assert AdversarialConfig(name="x", fraction=0.3, attack_steps=10).effort(
        training
    ).total_step_length == pytest.approx(20 / 255)
    assert "step_size" not in recipe.dump(found).partition("[attack]")[0]
    assert 'step_size = "2/255"' in recipe.dump(found).partition("[attack]")[2].partition("[loss]")[0]


@cases(("norm", "epsilon"), [("linf", 0.15), ("l2", 1.0), ("l2", 3.0), ("linf", 0.7)])
def test_at_any_radius_no_attack_falls_short(norm: str, epsilon: float):
    found = parsed(threat={"norm": norm, "epsilon": epsilon}, selector={"name": "adv-gradmatch", "fraction": 0.1})
    assert build.cautions(found) == []
    pgd = found.evaluation.pgd
    assert pgd is not None
    assert pgd.step_size == pytest.approx(epsilon / 4)
    assert pgd.epsilons == pytest.approx([epsilon / 2, epsilon, 2 * epsilon if norm == "l2" or epsilon < 0.5 else 1.0])
    for steps in (1, 2, 3, 7, 10, 100):
        most = steps if norm == "linf" else float("inf")  # a step of 1 crosses everything
        assert PGD(found.threat, steps=steps).total_step_length == pytest.approx(min(2.5 * epsilon, most))
        effort = Bullet(steps={"robust": steps, "boundary": steps})
        assert not any(attack.falls_short for attack in effort.attacks(PGD(found.threat)).values())
        assert not PGDEvaluation(steps=steps).resolved(found.threat).falls_short


@cases("epsilon", [*(k / 255 for k in range(1, 128)), 0.1, 0.15, 1 / 3, 0.2 / 3, 1e-13, 1e-4])
def test_the_evaluations_step_is_a_quarter_of_any_radius(epsilon: float):
    pgd = PGDEvaluation().resolved(ThreatModel(epsilon=epsilon))
    assert pgd.step_size == pytest.approx(epsilon / 4, rel=1e-9)
    assert pgd.epsilons == pytest.approx([epsilon / 2, epsilon, 2 * epsilon], rel=1e-9)
    assert PGDEvaluation(**pgd.model_dump()) == pgd


def test_radii_without_end_are_one_line():
    huge = parsed(threat={"norm": "l2", "epsilon": 1e307})
    with pytest.raises(UserError, match="covers every image"):
        build.data(huge)
    with pytest.raises(UserError, match=r"whole range of a pixel$"):
        parsed(threat={"epsilon": 1e308})


def test_more_or_fewer_steps_are_of_the_same_attack():
    class Mine(PGD):
        class Config(PGD.Config):
            turns: int = 1

    found = Mine(PAPER, turns=3).with_effort(2)
    assert type(found) is Mine
    assert (found.config.turns, found.config.steps, found.step_size) == (3, 2, 10 / 255)  # type: ignore[attr-defined]


@cases(
    ("tables", "said"),
    [
        ({"threat": {"epsilon": 8}}, '[threat] epsilon = 8: * did you mean "8/255"?'),
        ({"attack": {"name": "pgd", "step_size": 2}}, '[attack] step_size = 2.0: * did you mean "2/255"?'),
        ({"bullet": {"step_size": {"robust": 6}}}, '[bullet] step_size.robust = 6.0: * did you mean "6/255"?'),
        ({"evaluation": {"pgd": {"epsilons": [4, 8]}}}, '[evaluation] pgd.epsilons = [4.0, 8.0]: * "4/255"?'),
        ({"evaluation": {"autoattack": {"epsilons": [8]}}}, '[evaluation] autoattack.epsilons = [8.0]: * "8/255"?'),
        (
            {"selector": {"name": "adv-glister", "fraction": 0.3, "attack_steps": 2, "attack_step_size": 4}},
            '[selector] attack_step_size = 4.0: * "4/255"?',
        ),
        (
            {"threat": {"norm": "l2", "epsilon": 1.0}, "evaluation": {"pgd": {"step_size": "2/255"}}},
            "[evaluation] pgd.step_size = 0.00784*: 50 steps of 2/255 move * less than the radius 2.0; * would do",
        ),
        ({"threat": {"epsilon": 0}}, "[evaluation] no radius follows * pgd.epsilons, or pgd = false"),
    ],
)
def test_what_cannot_have_been_meant_is_refused(tables: dict[str, Any], said: str):
    import fnmatch

    with pytest.raises(UserError) as caught:
        parsed(**tables)
    assert fnmatch.fnmatchcase(
        str(caught.value).replace("[", "("), f"recipe: {said}".replace("[", "(").replace("?", "[?]")
    )


def test_the_value_that_would_do_does():
    text = ""
    with pytest.raises(UserError) as caught:
        parsed(evaluation={"pgd": {"steps": 5, "step_size": "1/255"}})
    text = str(caught.value).removesuffix(" would do").rpartition(" ")[2]
    found = parsed(evaluation={"pgd": {"steps": 5, "step_size": text}})
    assert found.evaluation.pgd is not None
    assert found.evaluation.pgd.falls_short is None


def test_training_that_falls_short_is_told_of():
    found = parsed(
        threat={"norm": "l2", "epsilon": 1.0},
        attack={"name": "pgd", "step_size": "2/255"},
        bullet=False,
        selector={"name": "adv-gradmatch", "fraction": 0.1, "attack_steps": 2, "attack_step_size": 0.1},
        evaluation={"pgd": False, "autoattack": {"epsilons": [0.5]}},
    )
    training, selection, evaluation = build.cautions(found)
    assert "its 10 steps of 2/255 move an image by 0.0784 at most, less than the radius 1.0; steps of 0.25" in training
    assert selection.startswith("the training attack for selection: its 2 steps of 0.1")
    assert evaluation == "the evaluation lacks the radius of training, threat.epsilon = 1.0"
    weak = parsed(bullet={"steps": {"robust": 1}, "step_size": {"robust": "2/255"}})
    (only,) = build.cautions(weak)
    assert only.startswith("the training attack of robust examples: its 1 step of 2/255")
    assert (
        build.cautions(parsed(loss={"name": "standard"}, attack={"name": "pgd", "step_size": 1e-4}, bullet=False)) == []
    )


def test_radii_given_to_evaluate_take_the_step_with_them():
    l2 = ThreatModel(norm="l2", epsilon=0.5)
    written = EvaluationConfig(autoattack=None).resolved(l2)
    near, far = (Changes(epsilons=[text]).apply(written, l2).pgd for text in ("0.75", "20"))
    assert near is not None
    assert far is not None
    assert (near.step_size, far.step_size) == (0.125, 5.0), "like the report's own figures, or a quarter of the radius"
    chosen = EvaluationConfig(pgd=PGDEvaluation(step_size=0.01), autoattack=None)
    with pytest.raises(UserError, match=r"50 steps of 0\.01 move .* less than the radius 20\.0"):
        Changes(epsilons=["20"]).apply(chosen.resolved(l2), l2)
    with pytest.raises(UserError, match=r'--epsilon 8: .*did you mean "8/255"\?'):
        Changes(epsilons=["8"]).apply(EvaluationConfig().resolved(PAPER), PAPER)


def test_an_l2_radius_that_holds_every_image_is_refused():
    found = parsed(threat={"norm": "l2", "epsilon": 8.0})
    with pytest.raises(UserError, match=r'threat\.epsilon = 8: .*did you mean "8/255"\?'):
        build.data(found)
    assert len(build.data(parsed(threat={"norm": "l2", "epsilon": 7.9})).test) == 450


def linear() -> tuple[nn.Module, ImageSet]:
    """A linear model whose images are all at the l2 distance 0.5 from its boundary."""
    draw = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(16, generator=draw), dim=0)
    x = 0.5 + 0.05 * torch.randn((120, 16), generator=draw)
    y = (torch.arange(120) % 2).long()
    wanted = 0.5 * (1 - 2 * y.float())
    x = x - ((x - 0.5) @ direction - wanted).unsqueeze(1) * direction
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([direction, -direction]))
        model[1].bias.copy_(torch.stack([-(direction * 0.5).sum(), (direction * 0.5).sum()]))
    return model, ImageSet(x.clamp(0, 1).view(-1, 1, 4, 4), y, ("right", "left"))


def test_pgd_that_falls_short_is_refused_and_one_that_does_not_breaks_what_autoattack_breaks():
    model, images = linear()
    threat = ThreatModel(norm="l2", epsilon=0.8)
    weak = EvaluationConfig(pgd=PGDEvaluation(steps=10, step_size=2 / 255), autoattack=None)
    with pytest.raises(UserError, match=r"10 steps of 2/255 move an image by 0\.0784 at most"):
        evaluate(model, images, weak, threat, seed=0)
    found = evaluate(model, images, EvaluationConfig(), threat, seed=0)
    assert found.pgd["0.8"] == found.autoattack["0.8"] == 0.0
    assert found.pgd["0.4"] > 0.9


def test_sanity_fails_where_pgd_is_far_above_autoattack():
    model, images = linear()
    threat = ThreatModel(norm="l2", epsilon=0.8)

    def judged(pgd: PGDEvaluation) -> Check:
        checks = Sanity(threat, 0, pgd).check(model, images, seed=0).checks
        return next(each for each in checks if each.name == "AutoAttack")

    assert judged(PGDEvaluation()).status == "pass"
    weak = judged(PGDEvaluation(steps=2, restarts=1, step_size=0.001))
    assert weak.status == "fail"
    assert weak.measured["gap"] > 0.5


def test_a_run_under_l2_says_so_and_reports_its_own_radius(tmp_path: Path, monkeypatch: Any, capsys: Any):
    monkeypatch.chdir(tmp_path)
    options = settings(
        threat__norm="l2",
        threat__epsilon="1.0",
        train__epochs=1,
        train__batch_size=606,
        train__precision="fp32",
        model__width=4,
        model__depths="[1]",
        attack__step_size="2/255",
        bullet="false",
        selector="false",
        evaluation__limit=20,
        evaluation__pgd__restarts=1,
        evaluation__autoattack="false",
    )
    answer = call(capsys, "run", "digits_mart", *options, "--output", "run")
    assert answer.status == 0, answer.err
    said = "warning: the training attack: its 10 steps of 2/255 move an image by 0.0784 at most"
    report = json.loads(Path("run/report.json").read_text())
    assert said in answer.out
    assert said in Path("run/report.md").read_text()
    assert [f"warning: {text}".startswith(said) for text in report["training"]["warnings"]] == [True]
    assert list(report["evaluation"]["last"]["pgd"]) == ["0.5", "1.0", "2.0"]


def test_a_runs_own_recipe_is_read_as_it_is(tmp_path: Path):
    text, count = re.subn(r'(\[evaluation\.pgd\][^[]*\nstep_size = )"2/255"', r"\g<1>1e-4", recipe.dump(parsed()))
    assert count == 1
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(UserError, match="would do"):
        recipe.load(tmp_path / "recipe.toml")
    kept = recipe.load(tmp_path / "recipe.toml", of_run=True).evaluation.pgd
    assert kept is not None
    assert kept.step_size == 1e-4


def test_a_resolved_recipe_says_the_steps_of_the_attack_for_selection(tmp_path: Path):
    chosen = {"name": "adv-gradmatch", "fraction": 0.1}

    def steps(found: recipe.Recipe) -> tuple[int | None, float | None]:
        selector: Any = found.selector
        return selector.attack_steps, selector.attack_step_size

    found = parsed(selector=chosen)
    assert steps(found) == (3, pytest.approx(2.5 * 8 / 255 / 3))
    (tmp_path / "recipe.toml").write_text(recipe.dump(found))
    assert recipe.load(tmp_path / "recipe.toml") == found
    assert steps(parsed(selector={**chosen, "attack_steps": 5})) == (5, 4 / 255)
    assert steps(parsed(selector=chosen, attack={"name": "fgsm"})) == (None, None), "there are no more to leave out"
    # As version 0.1 wrote it: steps without a size, which meant that of training.
    text = recipe.dump(found).replace("attack_steps = 3", "attack_steps = 5")
    kept = [line for line in text.splitlines() if not line.startswith("attack_step_size")]
    (tmp_path / "recipe.toml").write_text("\n".join(kept))
    assert steps(recipe.load(tmp_path / "recipe.toml", of_run=True)) == (5, 2 / 255)


def test_no_steps_and_radii_beyond_everything_are_told_of():
    (only,) = build.cautions(parsed(attack={"name": "pgd", "steps": 0}, bullet=False))
    assert only == "the training attack takes no steps: training is on the images as they are"
    l2 = {"norm": "l2", "epsilon": 1.0}
    with pytest.raises(UserError, match=r"evaluation\.pgd\.epsilons = 9: .*covers every image"):
        build.data(parsed(threat=l2, evaluation={"pgd": {"epsilons": [9.0]}}))
    assert build.data(parsed(threat={"norm": "l2", "epsilon": 7.0})), "twice epsilon may be anything"
    model, images = linear()
    for pgd in (PGDEvaluation(epsilons=[8]), PGDEvaluation(step_size=5.0)):
        with pytest.raises(UserError, match=r"at most 1"):
            evaluate(model, images, EvaluationConfig(pgd=pgd, autoattack=None), PAPER, seed=0)
