"""CORDS' own strategies, and subclasses of them, as selectors of a recipe."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import tomllib

import numpy as np
import pytest
import torch
from support.cases import cases
from support.command_line import SMALL, settings
from support.docs_pages import ROOT, commands, write_files
from support.small_problem import Problem
from torch import nn

from robustcords.attacks.pgd import PGD
from robustcords.config import registry
from robustcords.engine.modes import seeded
from robustcords.errors import UserError
from robustcords.losses.sat import SAT
from robustcords.losses.standard import Standard
from robustcords.models.last_layer import CordsModel
from robustcords.recipe import recipe, tables
from robustcords.selection._cords import DataSelectionStrategy, GLISTERStrategy, GradMatchStrategy
from robustcords.threats.base import ThreatModel

SIZES = [32, 24, 24]
SL = "cords.selectionstrategies.SL"
log = logging.getLogger(__name__)
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory'", "ignore:'cgi'")

MODULE = """
import torch
from cords.selectionstrategies.SL import GLISTERStrategy
from cords.selectionstrategies.SL.dataselectionstrategy import DataSelectionStrategy
from cords.selectionstrategies.SL.gradmatchstrategy import GradMatchStrategy
from robustcords.selection.gradients.adversarial_gradients import AdversarialGradients


class Longest(DataSelectionStrategy):
    def __init__(
        self, trainloader, valloader, model, num_classes, linear_layer, loss, device, logger, *,
        power: float, names=("a",), metric=torch.dist, selection_type="PerBatch"
    ):
        super().__init__(trainloader, valloader, model, num_classes, linear_layer, loss, device, logger)
        self.power, self.names, self.metric, self.selection_type = power, names, metric, selection_type
        assert isinstance(device, torch.device)

    def select(self, budget, model_params):
        self.update_model(model_params)
        self.compute_gradients()
        lengths = self.grads_per_elem.norm(dim=1)
        rows = lengths.argsort(descending=True)[:budget]
        return rows, lengths[rows] ** self.power


class Hooked(AdversarialGradients, Longest):
    pass


class HookedGradMatch(AdversarialGradients, GradMatchStrategy):
    pass


class Deeper(Longest):
    def __init__(self, factor=2, **options):
        super().__init__(**options)
        self.factor = factor

    def select(self, budget, model_params):
        rows, weights = super().select(budget, model_params)
        return rows, self.factor * weights


class ByPosition(Longest):
    def __init__(self, *args):
        super().__init__(*args)


class Wants(Longest):
    def __init__(self, scores: torch.Tensor, **options):
        super().__init__(**options)


class Raises(Longest):
    def select(self, budget, model_params):
        raise KeyError("no\\nsuch")


class Refuses(Longest):
    def __init__(self, **options):
        raise ValueError("not today")


class Nothing(Longest):
    def select(self, budget, model_params):
        return [], []


class NoAnswer(DataSelectionStrategy):
    pass
"""


@pytest.fixture
def module(importable):
    """The module above, importable as ``own_strategies``."""
    (importable / "own_strategies.py").write_text(MODULE)
    return "own_strategies"


def table(name, **options):
    """The [selector] table, checked as that of a recipe; what `dump` writes of it is the same again."""
    selector = {"name": name, "fraction": 0.25, **options}
    loaded = recipe.parse(
        {"data": {"name": "digits"}, "model": {"name": "resnet8"}, "threat": {}, "selector": selector}
    )
    assert recipe.parse(tomllib.loads(recipe.dump(loaded))) == loaded
    return loaded.selector


def select(name, problem, budget=20, context=None, **options):
    strategy = tables.find("selector", name).from_context(table(name, **options), problem.context(**(context or {})))
    return strategy.select(budget, problem.model.state_dict())


def glister(problem, *, eta=0.05, linear_layer=False, selection_type="PerClass", greedy="Stochastic", r=15):
    loss = nn.CrossEntropyLoss(reduction="none")
    first = (problem.train_loader, problem.val_loader, CordsModel(problem.model, 3), loss, eta, torch.device("cpu"), 3)
    return (*first, linear_layer, selection_type, greedy, log, r)


def gradmatch(problem, *, linear_layer=True, selection_type="PerClass", valid=False, v1=True, lam=0, eps=1e-4):
    loss = nn.CrossEntropyLoss(reduction="none")
    first = (problem.train_loader, problem.val_loader, CordsModel(problem.model, 3), loss, 0.01, torch.device("cpu"), 3)
    return (*first, linear_layer, selection_type, log, valid, v1, lam, eps)


@cases("mode", ["train", "eval"])
@cases(
    ("name", "strategy", "arguments", "options"),
    [
        ("glister", GLISTERStrategy, glister, {"selection_type": "Supervised"}),
        (
            "gradmatch",
            GradMatchStrategy,
            gradmatch,
            {"lam": 0.5, "eps": 1e-100, "selection_type": "PerClassPerGradient"},
        ),
        ("SL:GLISTERStrategy", GLISTERStrategy, glister, {}),
        ("SL.glisterstrategy:GLISTERStrategy", GLISTERStrategy, glister, {"linear_layer": True, "eta": 0.2}),
        ("SL:GLISTERStrategy", GLISTERStrategy, glister, {"greedy": "RGreedy", "r": 2}),
        ("SL:GLISTERStrategy", GLISTERStrategy, glister, {"greedy": "Naive", "selection_type": "Supervised"}),
        ("SL:GradMatchStrategy", GradMatchStrategy, gradmatch, {}),
        ("SL.gradmatchstrategy:GradMatchStrategy", GradMatchStrategy, gradmatch, {"lam": 0.5, "eps": 1e-100}),
        ("SL:GradMatchStrategy", GradMatchStrategy, gradmatch, {"lam": 0.5, "v1": False, "valid": True}),
        ("SL:GradMatchStrategy", GradMatchStrategy, gradmatch, {"selection_type": "PerClassPerGradient"}),
    ],
)
def test_upstreams_classes_pick_what_they_pick_without_us(name, strategy, arguments, options, mode):
    theirs, problem = (Problem(SIZES, batch=8) for _ in range(2))  # a budget of 20 is 8, 6 and 6 of the classes exactly
    theirs.model.train(mode == "train")
    problem.model.train(mode == "eval")  # the other mode than is asked for
    before = {key: value.clone() for key, value in problem.model.state_dict().items()}
    with seeded(5):
        rows, gammas = strategy(*arguments(theirs, **options)).select(20, theirs.model.state_dict())
    assert len(set(map(int, rows))) == 20
    if name in {"glister", "gradmatch"}:  # by their defaults
        options = {}
    if mode == "eval":
        options = {**options, "model_mode": "eval"}
    found, weights = select(name.replace("SL", SL, 1), problem, **options)
    assert found == list(map(int, rows))
    assert torch.equal(weights, gammas.float())
    assert all(torch.equal(value, before[key]) for key, value in problem.model.state_dict().items())
    assert all(module.training == (mode == "eval") for module in problem.model.modules())


def test_the_mode_matters():
    problem = Problem(SIZES, batch=8)
    for name in ("glister", "gradmatch"):
        assert set(select(name, problem)[0]) != set(select(name, problem, model_mode="eval")[0])


@pytest.mark.parametrize(("name", "options"), [("glister", {"granularity": "per_class"}), ("gradmatch", {})])
def test_where_batch_norm_would_meet_one_image_this_package_serves_in_eval_mode(name, options):
    problem = Problem([33, 24, 24], batch=8)
    expected = select(f"adv-{name}", problem, context={"attack": None, "loss": Standard()}, **OWN[name])
    assert select(name, problem, **options)[0] == expected[0]
    with pytest.raises(UserError, match=r'CORDS selects in train mode: set selector\.model_mode = "eval"'):
        select(f"{SL}:GradMatchStrategy", problem)


OWN = {
    "glister": {"granularity": "per_class", "eta": 0.05 * 20, "greedy": "Stochastic", "linear_layer": False},
    "gradmatch": {"granularity": "per_gradient", "lam": 0.5, "eps": 1e-100},
}


def test_granularity_names_the_selection_type():
    problem = Problem(SIZES, batch=4)
    name = f"{SL}:GradMatchStrategy"
    assert select(name, problem, granularity="per_batch")[0] == select(name, problem, selection_type="PerBatch")[0]
    assert select(name, problem, granularity="per_batch")[0] != select(name, problem)[0]
    assert table(name, selection_type="PerBatch").granularity == "per_batch"


def test_upstreams_random_strategy_repeats_and_leaves_the_generator_alone():
    problem = Problem(SIZES)
    np.random.seed(3)
    before = np.random.get_state()[1].tobytes()
    first = select(f"{SL}:RandomStrategy", problem)
    assert first[0] == select(f"{SL}.randomstrategy:RandomStrategy", problem)[0]
    assert first[0] != select(f"{SL}:RandomStrategy", problem, context={"seed": 6})[0]
    assert len(set(first[0])) == 20
    assert np.random.get_state()[1].tobytes() == before


@cases("selection_type", ["PerClass", "Supervised", "PerBatch"])
def test_budgets_below_the_rounds_of_glister_end(selection_type):
    problem = Problem(SIZES, batch=8)
    options = {"greedy": "RGreedy", "selection_type": selection_type}
    rows, weights = select(f"{SL}:GLISTERStrategy", problem, budget=4, **options)
    assert len(set(rows)) == 4
    assert weights.tolist() == [1.0] * 4


def test_rounds_that_a_class_has_too_few_examples_for_are_lowered_for_it():
    """8, 6 and 6 examples in 7 rounds: one at a time, as Naive takes them."""
    problem = Problem(SIZES, batch=8)
    given = glister(problem, greedy="Naive", linear_layer=True)
    problem.model.eval()
    rows, _ = GLISTERStrategy(*given).select(20, problem.model.state_dict())
    options = {"granularity": "per_class", "linear_layer": True, "model_mode": "eval"}
    assert select("glister", problem, greedy="RGreedy", r=7, **options)[0] == list(map(int, rows))


def test_a_users_subclass_has_its_own_options(module):
    problem = Problem(SIZES)
    strategy = DataSelectionStrategy(
        *(problem.train_loader, problem.val_loader, problem.cords_model(), 3, True),
        *(nn.CrossEntropyLoss(reduction="none"), torch.device("cpu"), log),
    )
    strategy.compute_gradients()
    lengths = strategy.grads_per_elem.norm(dim=1)
    rows, weights = select(f"{module}:Longest", problem, power=2.0, model_mode="eval")
    assert rows == lengths.argsort(descending=True)[:20].tolist()
    torch.testing.assert_close(weights, lengths[rows].square().float())

    config = table(f"{module}:Longest", power=1)
    assert (config.linear_layer, config.names, config.granularity, config.select_every) == (
        True,
        ["a"],
        "per_batch",
        20,
    )
    assert "metric" not in type(config).model_fields  # no TOML value is a function: it stays at its default
    found = select(f"{module}:Deeper", problem, power=2.0, factor=3, model_mode="eval")
    torch.testing.assert_close(found[1], 3 * weights)


def test_the_hook_attacks_with_the_training_loss(module):
    problem = Problem(SIZES)
    clean = {"attack": PGD(ThreatModel(epsilon=0.0), steps=1), "loss": SAT()}
    plain = select(f"{module}:Longest", problem, power=1.0, model_mode="eval")
    rows, weights = select(f"{module}:Hooked", problem, context=clean, power=1.0)
    assert rows == plain[0]
    torch.testing.assert_close(weights, plain[1])

    context = problem.context()
    adapter = tables.find("selector", f"{module}:Hooked")
    # The steps of the context's own attack; a recipe has those that follow from its own.
    options = {"power": 1.0, "attack_steps": 2, "attack_step_size": 0.03}
    built = adapter.from_context(table(f"{module}:Hooked", **options), context)
    hooked = sys.modules[module].Hooked(
        *(problem.train_loader, problem.val_loader, problem.model, 3, True, context.loss, torch.device("cpu"), log),
        **{"power": 1.0, "attack": context.attack, "seed": context.seed},
    )
    problem.model.eval()
    expected = hooked.select(20, problem.model.state_dict())
    rows, weights = built.select(20, problem.model.state_dict())
    assert rows == expected[0].tolist()
    torch.testing.assert_close(weights, expected[1].float())
    assert rows != plain[0]
    fewer = select(f"{module}:Hooked", problem, power=1.0, attack_steps=0)
    assert not torch.equal(fewer[1], weights)


def test_behind_the_hook_images_can_be_augmented_as_in_training(module):
    problem, mirrored = Problem(SIZES), Problem(SIZES)
    mirrored.train.images.copy_(problem.train.images.flip(3))
    plain = select(f"{module}:Longest", mirrored, power=1.0, model_mode="eval")
    clean = {"attack": PGD(ThreatModel(epsilon=0.0), steps=1), "loss": SAT()}
    found = select(
        f"{module}:Hooked", problem, context={**clean, "augment": lambda x, noise: x.flip(3)}, power=1.0, augment=True
    )
    assert found[0] == plain[0]
    torch.testing.assert_close(found[1], plain[1])
    assert found[0] != select(f"{module}:Hooked", problem, context=clean, power=1.0)[0]
    with pytest.raises(UserError, match=r"selector\.augment = true needs to know"):
        select(f"{module}:Hooked", problem, context=clean, power=1.0, augment=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (f"{SL}:GLISTERStrategy", {"etta": 1.0}, r"unknown key \"etta\"; did you mean 'eta'"),
        (f"{SL}:GLISTERStrategy", {"eta": -1.0}, "eta = -1.0: must be a number >= 0"),
        (f"{SL}:GLISTERStrategy", {"greedy": "RGreddy"}, "unknown value; did you mean 'RGreedy'"),
        (f"{SL}:GLISTERStrategy", {"granularity": "per_gradient"}, 'GLISTERStrategy has no "PerClassPerGradient"'),
        (f"{SL}:GradMatchStrategy", {"granularity": "full"}, 'GradMatchStrategy has no "Supervised"'),
        (f"{SL}:GradMatchStrategy", {"granularity": "full", "selection_type": "PerBatch"}, 'says "PerBatch"'),
        (f"{SL}:GLISTERStrateg", {}, "did you mean 'GLISTERStrategy'"),
        (f"{SL}:AdapWeightsStrategy", {}, "ss_indices is missing: AdapWeightsStrategy's constructor has no default"),
        (f"{SL}.none:X", {}, "No module named"),
        ("own_strategies:Longest", {}, "power is missing: Longest's constructor"),
        ("own_strategies:Longest", {"power": "x"}, 'power = "x": must be a number'),
        ("own_strategies:Longest", {"power": 1.0, "selection_type": "Mine"}, 'selection_type says "Mine"'),
        ("own_strategies:Hooked", {"power": 1.0, "hard_tail": 0.1}, 'unknown key "hard_tail"'),
        ("own_strategies:Wants", {}, "Wants: nothing fills its constructor's parameter 'scores'"),
        ("own_strategies:ByPosition", {}, "ByPosition: the constructor of ByPosition takes arguments by position"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line(module, name, options, message):
    with pytest.raises(UserError, match=message) as caught:
        table(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "Raises",
            {"power": 1.0},
            r"own_strategies:Raises': Raises failed in select: KeyError: .* \(own_strat.*py:\d+\)",
        ),
        ("Refuses", {"power": 1.0}, "Refuses failed in its constructor: ValueError: not today"),
        ("Nothing", {"power": 1.0}, "Nothing selected nothing"),
        ("NoAnswer", {}, "NoAnswer failed in select: TypeError"),
        ("HookedGradMatch", {"valid": True}, "set data.validation_fraction"),
    ],
)
def test_a_strategy_that_fails_says_so_in_one_line(module, name, options, message):
    problem = Problem(SIZES)
    with pytest.raises(UserError, match=message) as caught:
        select(f"{module}:{name}", problem, context={"val_loader": None}, **options)
    assert "\n" not in str(caught.value)


def test_a_missing_class_is_one_line():
    problem = Problem([20, 20, 0], batch=8, validation=[8, 8, 8])
    with pytest.raises(UserError, match=r"GradMatchStrategy failed in select: UnboundLocalError: .*grads"):
        select(f"{SL}:GradMatchStrategy", problem, budget=10)


def test_glister_asks_for_validation_images_when_the_recipe_is_read():
    values = {"data": {"name": "digits", "validation_fraction": 0.0}, "model": {"name": "resnet8"}, "threat": {}}
    with pytest.raises(UserError, match=r"selector.*validation_fraction is 0"):
        recipe.parse({**values, "selector": {"name": f"{SL}:GLISTERStrategy"}})
    assert recipe.parse({**values, "selector": {"name": f"{SL}:GradMatchStrategy"}}).selector


def test_without_apricot_a_line_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "apricot", None)
    monkeypatch.delitem(sys.modules, f"{SL}.craigstrategy", raising=False)
    monkeypatch.delitem(vars(importlib.import_module(SL)), "CRAIGStrategy", raising=False)
    for name in (f"{SL}:CRAIGStrategy", f"{SL}.craigstrategy:CRAIGStrategy"):
        with pytest.raises(UserError, match="apricot"):
            registry.find("selector", name)
    vars(importlib.import_module(SL)).pop("CRAIGStrategy", None)


@pytest.mark.slow
def test_craig_and_submodular_pick_what_they_pick_without_us():
    pytest.importorskip("apricot")
    from cords.selectionstrategies.SL.craigstrategy import CRAIGStrategy

    problem = Problem(SIZES, batch=8)
    first = (problem.train_loader, problem.val_loader, problem.cords_model(), nn.CrossEntropyLoss(reduction="none"))
    arguments = (*first, torch.device("cpu"), 3, True, False, "PerClass", log)
    with seeded(5):
        rows, gammas = CRAIGStrategy(*arguments).select(20, problem.model.state_dict())
    found, weights = select(f"{SL}.craigstrategy:CRAIGStrategy", problem)
    assert found == list(map(int, rows))
    assert torch.equal(weights, gammas)
    # 6 of each class: CORDS rounds down, and 2 are filled up.
    found, _ = select(f"{SL}.submodularselectionstrategy:SubmodularSelectionStrategy", problem)
    assert len(set(found)) == 20


def test_the_command_line_runs_and_selects(tmp_path, command):
    values = {"selector__name": f"{SL}:GLISTERStrategy", "selector__eta": 0.1, "selector__warm_start": 0.0}
    values |= {"selector__fraction": 0.2, "selector__select_first": "true", "selector__granularity": '"full"'}
    given = ["digits_mart", *SMALL, *settings(**values)]
    (tmp_path / "own.toml").write_text(
        f'extends = "digits_mart"\n[selector]\nname = "{SL}:GradMatchStrategy"\nlam = 0.5\n'
    )
    assert command("validate", "own.toml").status == 0
    answer = command("run", *given, "--output", "out")
    assert answer.status == 0, answer.err
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [each["size"] for each in report["training"]["selections"]] == [43, 43]
    weights = tmp_path / "out/weights/last.safetensors"
    answer = command("select", "out/recipe.toml", "--weights", weights, "--output", "picks.npz")
    assert answer.status == 0, answer.err
    assert len(np.unique(np.load(tmp_path / "picks.npz")["indices"])) == 43


def test_the_worked_example_runs(tmp_path, command):
    page = ROOT / "docs/extending.md"
    write_files(page, tmp_path)
    assert ["run", "my_cords_strategy.toml"] in commands(page)
    answer = command("run", "my_cords_strategy.toml", *settings(data__train_limit=240))
    assert answer.status == 0, answer.err
    report = json.loads((tmp_path / "runs/my_cords_strategy/report.json").read_text())
    assert report["training"]["selections"] == [{"epoch": 0, "size": 43}, {"epoch": 1, "size": 43}]
