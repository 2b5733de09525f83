from __future__ import annotations

import torch
from support.cases import cases
from support.small_problem import LOSSES, Problem, factors, read

from robustcords.losses.mart import MART
from robustcords.losses.standard import Standard
from robustcords.losses.trades import TRADES
from robustcords.rng import Noise
from robustcords.selection.gradients.adversarial_pass import adversarial_pass


def autograd_gradients(problem, loss, adversarial):
    """Every example's gradient of the last layer's bias and weight, one backward pass each, in CORDS' column order."""
    model = problem.model.eval()
    head = [model[-1].bias, model[-1].weight]
    rows = []
    for x, x_adv, y in zip(problem.train.images, adversarial, problem.train.labels, strict=True):
        of = {"clean": x, "adversarial": x_adv}
        logits = {name: model(of[name].unsqueeze(0)) for name in loss.views}
        value = loss.from_logits(logits, y.unsqueeze(0)).sum()
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(value, head)]))
    return torch.stack(rows)


@cases("name", LOSSES)
@cases("sizes", [[20, 13], [9, 9, 9, 9, 9]])
def test_factors_are_the_gradients_that_autograd_finds_at_the_adversarial_examples(name, sizes):
    problem = Problem(sizes)
    loss, context = LOSSES[name](), problem.context()
    rows = torch.arange(len(problem.train))
    x, y = problem.train.images, problem.train.labels
    clean = problem.model.eval()(x).detach()
    adversarial = context.attack(problem.model, x, loss.objective(y, lambda: clean), Noise(7, rows))
    expected = autograd_gradients(problem, loss, adversarial)

    problem.model.train()
    found = adversarial_pass(
        problem.model, *read(problem.train_loader), loss, context.attack, seed=7, num_classes=len(sizes), device="cpu"
    )

    assert len(found.deltas) == len(loss.views)
    torch.testing.assert_close(found.dense(), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(found.labels, y)
    assert problem.model.training


class Spread(TRADES):
    """TRADES, and the length of the batch's mean adversarial logits in equal shares."""

    batchwise = True

    def from_logits(self, logits, y):
        length = logits["adversarial"].mean(dim=0).norm()
        return super().from_logits(logits, y) + (length / len(y)).expand(len(y))


def test_a_term_of_the_batch_is_differentiated_batch_by_batch():
    problem, loss = Problem([20, 13], batch=8), Spread()
    model, attack = problem.model.eval(), problem.context().attack
    found = adversarial_pass(model, *read(problem.train_loader), loss, attack, seed=7, num_classes=2, device="cpu")
    head = [model[-1].bias, model[-1].weight]
    for rows in torch.arange(33).split(8):
        x, y = problem.train.images[rows], problem.train.labels[rows]
        clean = model(x)
        adversarial = model(attack(model, x, loss.objective(y, clean.detach), Noise(7, rows)))
        total = loss.from_logits({"clean": clean, "adversarial": adversarial}, y).sum()
        bias, weight = torch.autograd.grad(total, head)
        torch.testing.assert_close(found.rows(rows).sum(), torch.cat([bias.unsqueeze(1), weight], dim=1))


def test_beta_enters_once():
    problem = Problem([15, 15])
    passes = {}
    for beta in (0.0, 1.0, 6.0):
        passes[beta] = adversarial_pass(
            problem.model,
            *read(problem.train_loader),
            TRADES(beta=beta),
            problem.context().attack,
            seed=1,
            num_classes=2,
            device="cpu",
        ).dense()
    # TRADES' attack does not depend on beta, so the gradient is linear in it.
    torch.testing.assert_close(passes[6.0] - passes[0.0], 6 * (passes[1.0] - passes[0.0]))


def test_the_pass_leaves_model_and_global_generators_alone():
    problem = Problem([20, 20])
    before = {key: value.clone() for key, value in problem.model.state_dict().items()}
    state = torch.get_rng_state()
    seen = []
    adversarial_pass(
        problem.model,
        *read(problem.train_loader),
        MART(),
        problem.context().attack,
        seed=1,
        num_classes=2,
        device="cpu",
        on_batch=lambda done, total: seen.append((done, total)),
    )
    assert all(torch.equal(value, before[key]) for key, value in problem.model.state_dict().items())
    assert all(parameter.grad is None for parameter in problem.model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_loss_without_an_adversarial_pass_makes_no_attack():
    problem = Problem([10, 10])

    def refuse(*args):
        raise AssertionError("attacked")

    found = adversarial_pass(
        problem.model, *read(problem.train_loader), Standard(), refuse, seed=0, num_classes=2, device="cpu"
    )
    assert len(found) == 20


@cases("dtype", [torch.float64, torch.float32])
@cases(("count", "classes", "width", "terms"), [(7, 2, 1, 1), (40, 10, 16, 2), (33, 3, 50, 1)])
def test_products_of_factors_are_products_of_dense_rows(count, classes, width, terms, dtype):
    exact = factors(count, classes, width, terms)
    cast = [tuple(part.to(dtype) for part in group) for group in (exact.deltas, exact.features)]
    gradients = type(exact)(*cast, exact.labels)
    direction = torch.randn(classes, 1 + width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    flat = torch.cat([direction[:, 0], direction[:, 1:].flatten()])
    weights = torch.linspace(0, 2, count, dtype=torch.float64)
    forms = {
        "all": (gradients, exact.dense(), flat, direction),
        "bias": (gradients.bias_only(), exact.dense()[:, :classes], direction[:, 0], direction[:, :1]),
        "output": (
            gradients.of_output(1),
            torch.cat([exact.dense()[:, 1:2], exact.dense()[:, classes + width : classes + 2 * width]], dim=1),
            direction[1],
            direction[1:2],
        ),
    }
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-4}

    def compare(left, right):
        torch.testing.assert_close(left.double(), right, **tolerance)

    for restricted, dense, vector, matrix in forms.values():
        compare(restricted.dense(), dense)
        compare(restricted.inner(matrix), dense @ vector)
        compare(restricted.products(restricted.rows(slice(2, 6))), dense @ dense[2:6].T)
        compare(restricted.squared_norms(), dense.square().sum(dim=1))
        total = restricted.sum(weights)
        compare(torch.cat([total[:, 0], total[:, 1:].flatten()]), weights @ dense)


def test_batch_means_are_means_of_dense_rows():
    gradients = factors(25, 4, 6, 2)
    means = gradients.means([10, 10, 5])
    dense = torch.stack([part.mean(dim=0) for part in gradients.dense().split([10, 10, 5])])
    torch.testing.assert_close(means.dense(), dense)
    torch.testing.assert_close(means.products(means), dense @ dense.T)
    torch.testing.assert_close(means.squared_norms(), dense.square().sum(dim=1))
    direction = means.values[2] - means.values[0]
    torch.testing.assert_close(means.inner(direction), dense @ (dense[2] - dense[0]))
    weights = torch.tensor([0.5, 0.0, 2.0])
    torch.testing.assert_close(means.sum(weights), means.values[0] * 0.5 + means.values[2] * 2)
