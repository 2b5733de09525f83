"""What every strategy promises, one table for all of them."""

from __future__ import annotations

import random
from itertools import product
from typing import ClassVar

import numpy as np
import pydantic
import pytest
import torch
from support.cases import cases
from support.small_problem import LOSSES, Problem

from robustcords.attacks.pgd import PGD
from robustcords.config.registry import find
from robustcords.data.split import apportion
from robustcords.errors import RunError, UserError
from robustcords.rng import generator
from robustcords.selection.base import Strategy
from robustcords.selection.gradient_based import AdversarialStrategy
from robustcords.selection.gradient_based_config import AdversarialConfig
from robustcords.selection.strategies import STRATEGIES

CHOOSING = sorted(set(STRATEGIES) - {"fixed", "infobatch"})
"""``fixed`` chooses nothing, and ``infobatch`` as many as the losses say; they have tests of their own."""
GRANULARITIES = ["per_class", "per_batch", "per_gradient", "full"]


def select(problem, name, budget, *, context=None, **options):
    strategy = find("selector", name)
    config = strategy.Config(**options)
    return strategy.from_context(config, context or problem.context()).select(budget, problem.model.state_dict())


def check(problem, found, budget):
    rows, weights = found
    assert isinstance(rows, list)
    assert all(isinstance(row, int) for row in rows)
    assert len(set(rows)) == len(rows) == budget == len(weights)
    assert set(rows) <= set(range(len(problem.train)))
    assert weights.dtype == torch.float32
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    assert weights.any()


ODD = {
    "uneven": ([31, 17, 5], 23),
    "one example": ([31, 17, 5], 1),
    "all but one": ([31, 17, 5], 52),
    "one class": ([40], 13),
    "class of one": ([31, 1, 20], 26),
    "absent class": ([31, 0, 20], 26),
}


COMBINED = list(product(CHOOSING, GRANULARITIES, ODD))
EACH_TWO = [
    (name, granularity, odd)
    for name, granularity, odd in COMBINED
    if (CHOOSING.index(name) + GRANULARITIES.index(granularity) + [*ODD].index(odd)) % 4 == 0
]
"""In which each two of the three come together."""


@cases("name, granularity, odd", EACH_TWO)
def test_exactly_the_budget_at_every_granularity(name, granularity, odd):
    sizes, budget = ODD[odd]
    problem = Problem(sizes, batch=16 if granularity == "per_batch" else 64)
    check(problem, select(problem, name, budget, granularity=granularity), budget)


@pytest.mark.slow
@cases("name, granularity, odd", COMBINED)
def test_exactly_the_budget_in_all_combinations(name, granularity, odd):
    test_exactly_the_budget_at_every_granularity.__wrapped__(name, granularity, odd)


@cases("greedy", ["RGreedy", "Stochastic", "Naive"])
@cases("granularity", GRANULARITIES)
@cases("name", ["adv-glister", "glister"])
@cases("budget", [7, 50])
def test_every_greedy_form_keeps_the_budget(name, granularity, greedy, budget):
    problem = Problem([31, 17, 5])
    check(problem, select(problem, name, budget, granularity=granularity, greedy=greedy, r=15), budget)


@cases("name", CHOOSING)
def test_the_whole_budget_is_all_the_data_with_weight_1(name):
    problem = Problem([12, 9])
    rows, weights = select(problem, name, 21)
    assert rows == list(range(21))
    assert torch.equal(weights, torch.ones(21))


@cases("budget", [0, 22])
@cases("name", CHOOSING)
def test_an_impossible_budget_is_refused(name, budget):
    with pytest.raises(UserError, match="1 to 21 can be selected"):
        select(Problem([12, 9]), name, budget)


@cases("granularity", GRANULARITIES)
@cases("name", CHOOSING)
def test_reproducible_and_without_a_trace(name, granularity):
    problem = Problem([31, 17, 12])
    problem.model.train()
    weights = {key: value.clone() for key, value in problem.model.state_dict().items()}
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), np.geterr()

    first = select(problem, name, 20, granularity=granularity)
    again = select(problem, name, 20, granularity=granularity)

    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert np.geterr() == before[3]
    assert all(torch.equal(value, weights[key]) for key, value in problem.model.state_dict().items())
    assert problem.model.training
    assert problem.model[-2].training


@cases("loss", LOSSES)
@cases("name", ["adv-glister", "adv-gradmatch"])
def test_adversarial_selections_differ_from_clean_and_random_ones(name, loss):
    problem = Problem([40, 40])

    def chosen(**changes):
        context = problem.context(loss=LOSSES[loss](), **changes)
        return select(problem, name, 24, granularity="per_class", context=context)[0]

    adversarial, clean = chosen(), chosen(attack=None)
    drawn = select(problem, "random", 24)[0]
    assert set(adversarial) != set(clean)
    assert set(adversarial) != set(drawn)


@cases("name", ["adv-glister", "adv-gradmatch", "random"])
@cases("granularity", ["per_class", "per_gradient"])
def test_classes_keep_their_shares(name, granularity):
    problem = Problem([40, 20, 10])
    rows, _ = select(problem, name, 21, granularity=granularity)
    assert problem.train.labels[rows].bincount().tolist() == [12, 6, 3]


@cases("name", ["adv-glister", "adv-gradmatch", "random"])
def test_per_batch_takes_whole_batches_and_cuts_the_last(name):
    problem = Problem([31, 22])  # batches of 16, 16, 16 and 5
    rows, _ = select(problem, name, 20, granularity="per_batch", context=problem.context(seed=3))
    order = torch.arange(53) if name == "random" else torch.randperm(53, generator=generator(3, "batches"))
    place = order.argsort()
    taken = [int(place[row]) // 16 for row in rows]
    order = list(dict.fromkeys(taken))
    assert taken == sorted(taken, key=order.index)
    lengths = {0: 16, 1: 16, 2: 16, 3: 5}
    assert all(taken.count(batch) == lengths[batch] for batch in order[:-1])


@cases("name", ["adv-glister", "adv-gradmatch", "el2n"])
def test_batches_mix_the_classes_of_a_set_that_is_in_their_order(name):
    problem = Problem([48, 48], batch=16)
    for seed in range(3):
        rows, _ = select(problem, name, 16, granularity="per_batch", context=problem.context(seed=seed))
        assert problem.train.labels[rows].unique().tolist() == [0, 1]


def test_random_draws_anew_for_every_seed_and_never_runs_the_model():
    problem = Problem([31, 17])

    def refuse(*args):
        raise AssertionError("the model was run")

    context = problem.context(model=refuse, seed=1)
    config = find("selector", "random").Config()
    first = find("selector", "random").from_context(config, context).select(20, {})[0]
    second = select(problem, "random", 20, context=problem.context(seed=2))[0]
    assert set(first) != set(second)


@cases("name", ["random", "glister", "gradmatch"])
def test_options_of_an_attack_are_refused_where_there_is_none(name):
    with pytest.raises(pydantic.ValidationError, match="attack_steps"):
        find("selector", name).Config(attack_steps=1)


def test_attack_steps_are_those_of_the_selection():
    problem = Problem([40, 40])
    weak = problem.context(attack=PGD(problem.context().attack.threat, steps=1, step_size=0.01))
    expected = select(problem, "adv-gradmatch", 24, context=weak)
    found = select(problem, "adv-gradmatch", 24, attack_steps=1, attack_step_size=0.01)
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])
    with pytest.raises(pydantic.ValidationError, match="no effect without attack_steps"):
        find("selector", "adv-gradmatch").Config(attack_step_size=0.01)


def test_left_out_the_selection_takes_three_steps_across_the_ball():
    threat = Problem([4]).context().attack.threat
    config, device = AdversarialConfig(name="adv-gradmatch"), torch.device("cpu")
    found = config.attack(PGD(threat, steps=10, step_size=0.01, random_start="uniform"), device).config
    assert (found.steps, found.random_start) == (3, "uniform")
    assert found.step_size == pytest.approx(2.5 * threat.epsilon / 3)
    for few in (PGD(threat, steps=3, step_size=0.01), PGD(threat, steps=0)):
        assert config.attack(few, device) is few, "the training attack is cheap enough"


def test_matching_the_validation_gradient():
    problem = Problem([40, 40])
    rows, weights = select(problem, "adv-gradmatch", 30, valid=True, granularity="full", lam=1e-3)
    strategy = find("selector", "adv-gradmatch")
    built = strategy.from_context(strategy.Config(valid=True, granularity="full"), problem.context())
    built.compute_gradients(valid=True)
    target = built.validation_gradients.sum() * (80 / 16)
    chosen = built.gradients.rows(torch.tensor(rows)).sum(weights)
    assert (chosen - target).norm() < 0.05 * target.norm()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_examples_of_weight_0_are_warned_of_once_a_selection(granularity, caplog):
    problem = Problem([40, 40], batch=4)
    _, weights = select(problem, "adv-gradmatch", 32, granularity=granularity)
    assert weights.all()
    assert caplog.messages == []
    _, weights = select(problem, "adv-gradmatch", 32, granularity=granularity, eps=0.9)
    unused = int((weights == 0).sum())
    assert 0 < unused < 32
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{unused} of 32 selected examples have weight 0" in caplog.messages[0]


@pytest.mark.parametrize(("name", "options"), [("adv-glister", {}), ("adv-gradmatch", {"valid": True})])
def test_a_missing_validation_split_is_named(name, options):
    problem = Problem([12, 9])
    with pytest.raises(UserError, match=r"data.validation_fraction > 0"):
        select(problem, name, 5, context=problem.context(val_loader=None), **options)


def test_broken_weights_are_a_run_error():
    problem = Problem([12, 9])
    problem.model[-1].weight.data[0, 0] = float("nan")
    with pytest.raises(RunError, match="21 of 21 training examples are not finite"):
        select(problem, "adv-gradmatch", 5)


def test_a_shuffling_loader_is_refused():
    problem = Problem([12, 9])
    shuffled = torch.utils.data.DataLoader(problem.train, batch_size=4, shuffle=True, generator=torch.Generator())
    with pytest.raises(UserError, match="shuffle=False"):
        select(problem, "random", 5, context=problem.context(train_loader=shuffled))


class LargestNorm(AdversarialStrategy):
    """The example of the documentation: keeps the examples with the largest gradients."""

    def pick(self, gradients, budget, generator):
        rows = gradients.squared_norms().topk(budget).indices
        return rows, torch.ones(budget)


@cases("granularity", GRANULARITIES)
def test_a_strategy_of_ones_own_writes_pick_alone(granularity):
    problem = Problem([31, 17, 5])
    config = LargestNorm.Config(name="mine", granularity=granularity)
    strategy = LargestNorm.from_context(config, problem.context())
    check(problem, strategy.select(20, problem.model.state_dict()), 20)
    if granularity == "full":
        norms = strategy.gradients.dense().norm(dim=1)
        rows = strategy.select(20, problem.model.state_dict())[0]
        assert set(rows) == set(norms.topk(20).indices.tolist())


class Broken(AdversarialStrategy):
    answers: ClassVar[dict[str, tuple[torch.Tensor, torch.Tensor]]] = {
        "exactly the budget": (torch.arange(3), torch.ones(3)),
        r"\(4, 1\) weights": (torch.arange(4), torch.ones(4, 1)),
        "not unique": (torch.zeros(4, dtype=torch.int64), torch.ones(4)),
        "from 0 to 20": (torch.tensor([0, 1, 2, 21]), torch.ones(4)),
        "negative": (torch.arange(4), -torch.ones(4)),
        "not finite": (torch.arange(4), torch.full((4,), float("nan"))),
    }

    def pick(self, gradients, budget, generator):
        return self.answers[self.config.name]


@cases("what", Broken.answers)
def test_what_pick_returns_is_looked_at(what):
    config = Broken.Config(name=what, granularity="full")
    problem = Problem([12, 9])
    with pytest.raises(UserError, match=f"^test_strategies:Broken.pick returned.*{what}"):
        Broken.from_context(config, problem.context()).select(4, problem.model.state_dict())


class AllZero(AdversarialStrategy):
    def pick(self, gradients, budget, generator):
        return torch.arange(budget), torch.zeros(budget)


def test_weights_that_are_all_0_become_1():
    problem = Problem([12, 9])
    strategy = AllZero.from_context(AllZero.Config(name="zero"), problem.context())
    assert torch.equal(strategy.select(5, problem.model.state_dict())[1], torch.ones(5))


def test_every_registered_strategy_has_a_config_and_its_name():
    for name in STRATEGIES:
        strategy = find("selector", name)
        assert issubclass(strategy, Strategy)
        assert strategy.Config.model_fields["name"].default == name
        with pytest.raises(pydantic.ValidationError):
            strategy.Config(fraction=0.0)


@cases("sizes", [[1], [5, 5, 5], [1, 2, 4, 100], [0, 3, 0, 7]])
def test_shares_add_up_and_fit(sizes):
    for budget in range(sum(sizes) + 1):
        shares = apportion(sizes, budget)
        assert sum(shares) == budget
        assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
        assert all(abs(share - budget * size / sum(sizes)) < 1 for share, size in zip(shares, sizes, strict=True))


class Fails(AdversarialStrategy):
    def pick(self, gradients, budget, generator):
        return 1 / 0


class GivesLists(AdversarialStrategy):
    def pick(self, gradients, budget, generator):
        return list(range(budget)), [1.0] * budget


def test_a_strategy_of_ones_own_that_fails_is_one_line_with_the_place():
    problem = Problem([12, 9])
    with pytest.raises(
        UserError, match=r"^test_strategies:Fails\.pick failed: ZeroDivisionError: .* \(test_strategies\.py:\d+\)$"
    ):
        Fails.from_context(Fails.Config(name="fails"), problem.context()).select(5, problem.model.state_dict())


def test_a_strategy_of_ones_own_may_give_lists():
    problem = Problem([12, 9])
    strategy = GivesLists.from_context(GivesLists.Config(name="lists"), problem.context())
    check(problem, strategy.select(5, problem.model.state_dict()), 5)
