from __future__ import annotations

import pytest
import torch
from support.cases import cases
from support.small_problem import Problem, factors

from robustcords.config.registry import find
from robustcords.selection import gradient_based as adversarial
from robustcords.selection.gradients.class_stream import class_by_class
from robustcords.selection.gradients.factors import LastLayerGradients
from robustcords.selection.gradients.matching import Matching

LABELS = torch.tensor([2, 0, 5, 0, 2, 2, 0, 7, 0, 2, 0, 5, 0])


@cases("batches_at_once", [1, 2, 3, 100])
@cases("batch_size", [1, 2, 4, 5, 13, 50])
def test_every_class_comes_once_and_whole(batch_size, batches_at_once):
    gradients = factors(len(LABELS), 3, 4, 2)
    asked = []

    def compute(batches, before, total):
        assert total == -(-len(LABELS) // batch_size)
        assert before == len(asked)
        assert len(batches) <= batches_at_once
        asked.extend(batches)
        rows = torch.tensor([row for batch in batches for row in batch])
        found = gradients.rows(rows)
        return LastLayerGradients(found.deltas, found.features, LABELS[rows])

    found = [
        each
        for some in class_by_class(LABELS, compute, batch_size=batch_size, batches_at_once=batches_at_once)
        for each in some
    ]
    assert [each.label for each in found] == [0, 2, 5, 7]
    for each in found:
        assert torch.equal(each.places, (each.label == LABELS).nonzero()[:, 0])
        assert torch.equal(each.gradients.dense(), gradients.rows(each.places).dense())
        assert torch.equal(each.gradients.labels, LABELS[each.places])
    assert sorted(row for batch in asked for row in batch) == list(range(len(LABELS)))
    assert {len(batch) for batch in asked[:-1]} <= {batch_size}


@pytest.mark.parametrize("granularity", ["per_class", "per_gradient"])
@pytest.mark.parametrize("name", ["adv-glister", "adv-gradmatch"])
def test_what_is_kept_at_a_time_changes_nothing(monkeypatch, name, granularity):
    problem = Problem([31, 3, 0, 17, 22], batch=8)
    strategy = find("selector", name)

    def select():
        chosen = strategy.from_context(strategy.Config(granularity=granularity), problem.context(measure=True))
        return *chosen.select(25, problem.model.state_dict()), chosen.report

    rows, weights, report = select()
    monkeypatch.setattr(adversarial, "_KEPT", 1)
    piecemeal = select()
    assert piecemeal[0] == rows
    assert torch.equal(piecemeal[1], weights)
    assert piecemeal[2].matching_error == pytest.approx(report.matching_error, rel=1e-12)
    assert set(report.seconds) == {"attack", "solve"} | ({"validation attack"} if name == "adv-glister" else set())


@pytest.mark.parametrize("budget", [1, 2, 5])
def test_classes_without_a_share_are_part_of_what_is_matched(monkeypatch, budget):
    problem = Problem([40, 5, 5, 5, 5], batch=8)
    strategy = find("selector", "adv-gradmatch")
    chosen = strategy.from_context(strategy.Config(), problem.context(measure=True))
    expected = chosen.select(budget, problem.model.state_dict())
    chosen.compute_gradients()
    matching = Matching(seed=0)
    matching.add(chosen.gradients, torch.tensor(expected[0]), expected[1], 0)
    assert chosen.report.matching_error == pytest.approx(matching.errors()[0], rel=1e-6)
    monkeypatch.setattr(adversarial, "_KEPT", 1)
    again = strategy.from_context(strategy.Config(), problem.context()).select(budget, problem.model.state_dict())
    assert again[0] == expected[0]


def test_progress_counts_all_batches_of_the_training_images(monkeypatch):
    monkeypatch.setattr(adversarial, "_KEPT", 1)
    problem, seen = Problem([31, 17], batch=8), []
    strategy = find("selector", "adv-gradmatch")
    context = problem.context(on_batch=lambda done, total: seen.append((done, total)))
    strategy.from_context(strategy.Config(), context).select(9, problem.model.state_dict())
    assert seen == [(done, 6) for done in range(1, 7)]


def test_matching_is_the_error_of_the_best_multiple():
    parts = [factors(40, 3, 5, 2, seed) for seed in range(2)]
    rows = [torch.arange(0, 40, 4), torch.arange(20)]
    weights = [torch.linspace(1, 3, 10), torch.ones(20)]
    matching = Matching(seed=0)
    for number, (gradients, chosen, weight) in enumerate(zip(parts, rows, weights, strict=True)):
        matching.add(gradients, chosen, weight, number)
    target = sum(part.dense().sum(0) for part in parts).numpy()
    subset = sum(
        weight.double() @ part.dense()[chosen] for part, chosen, weight in zip(parts, rows, weights, strict=True)
    ).numpy()
    best = (subset @ target) / (subset @ subset)
    found = matching.errors()
    assert found[0] == pytest.approx(((best * subset - target) ** 2).sum() ** 0.5 / (target**2).sum() ** 0.5, rel=1e-9)
    assert 0 < found[1] < 1


def test_matching_of_everything_is_exact_and_of_nothing_is_not_measured():
    gradients = factors(30, 3, 5, 1)
    matching = Matching(seed=0)
    assert matching.errors() is None
    matching.add(gradients, torch.arange(30), torch.full((30,), 0.1), 0)
    assert max(matching.errors()) < 1e-6
