"""What CORDS' form of GLISTER asks of the pass and of the greedy choice: train mode, augmented images, class shares."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.cases import cases
from support.small_problem import Problem, factors, read
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from robustcords.data.augmentations.crop_flip import CropFlip
from robustcords.data.split import apportion
from robustcords.errors import UserError
from robustcords.losses.sat import SAT
from robustcords.losses.standard import Standard
from robustcords.losses.trades import TRADES
from robustcords.rng import Noise, derive
from robustcords.selection.gradients.adversarial_pass import adversarial_pass
from robustcords.selection.gradients.validation_gradient import ValidationGradient
from robustcords.selection.solvers.greedy import taylor_greedy
from robustcords.selection.strategies.adv_glister import AdvGLISTERStrategy

SIZES = [14, 11, 9]


def without_dropout(problem: Problem) -> nn.Module:
    return nn.Sequential(*(part for part in problem.model if not isinstance(part, nn.Dropout)))


@pytest.mark.parametrize("name", [Standard, TRADES])
def test_in_train_mode_batches_have_their_own_statistics(name):
    problem = Problem(SIZES, batch=10)
    model, loss, attack = without_dropout(problem), name(), problem.context().attack
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.eval()
    state = torch.random.get_rng_state()
    found = adversarial_pass(
        model, *read(problem.train_loader), loss, attack, seed=3, num_classes=3, device="cpu", train_mode=True
    )
    plain = adversarial_pass(model, *read(problem.train_loader), loss, attack, seed=3, num_classes=3, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert not torch.allclose(found.logits[0], plain.logits[0])
    # By hand: normalise with mean and biased variance of the batch, as BatchNorm's formula has it.
    first, norm, head = model[1], model[2], model[4]
    logits = []
    for x, _ in problem.train_loader:
        h = first(x.flatten(1))
        h = (h - h.mean(0)) / (h.var(0, unbiased=False) + norm.eps).sqrt() * norm.weight + norm.bias
        logits.append(head(h.relu()))
    assert torch.allclose(found.logits[0], torch.cat(logits), atol=1e-12), "the clean pass is the loss's first"


def test_dropout_drops_the_same_again():
    problem = Problem(SIZES)

    def run(seed: int) -> torch.Tensor:
        arguments = (problem.model, *read(problem.train_loader), Standard(), None)
        return adversarial_pass(*arguments, seed=seed, num_classes=3, device="cpu", train_mode=True).features[0]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert (run(1) == 0).double().mean() > 0.2


def test_a_batch_of_one_image_is_one_line():
    problem = Problem([7, 6, 4], batch=16)
    config = AdvGLISTERStrategy.Config(granularity="full", model_mode="train")
    strategy = AdvGLISTERStrategy.from_context(config, problem.context())
    with pytest.raises(
        UserError, match=r'^selector.model_mode = "train": a batch of one image .*change train.batch_size'
    ):
        strategy.select(5, problem.model.state_dict())


def test_augmented_images_are_those_that_are_attacked():
    problem = Problem(SIZES)
    crops = CropFlip(crop=2, flip=True)
    arguments = {"seed": 3, "num_classes": 3, "device": "cpu"}
    attack = problem.context().attack
    found = adversarial_pass(problem.model, *read(problem.train_loader), TRADES(), attack, augment=crops, **arguments)
    rows = torch.arange(len(problem.train))
    x, y = problem.train.batch(rows)
    moved = crops(x, Noise(derive(3, "augment"), rows))
    assert not torch.equal(moved, x)
    loader = DataLoader(TensorDataset(moved, y), batch_size=16)
    expected = adversarial_pass(problem.model, *read(loader), TRADES(), attack, **arguments)
    for one, other in zip(found.deltas + found.features, expected.deltas + expected.features, strict=True):
        assert torch.equal(one, other)


def test_who_asks_for_augmented_images_says_how():
    problem = Problem(SIZES)
    config = AdvGLISTERStrategy.Config(augment=True)
    with pytest.raises(UserError, match=r"^selector.augment = true needs to know how"):
        AdvGLISTERStrategy.from_context(config, problem.context())
    context = problem.context(augment=CropFlip(crop=1, flip=True))
    chosen, _ = AdvGLISTERStrategy.from_context(config, context).select(12, problem.model.state_dict())
    plain, _ = AdvGLISTERStrategy.from_context(AdvGLISTERStrategy.Config(), context).select(
        12, problem.model.state_dict()
    )
    assert len(set(chosen)) == 12
    assert chosen != plain


@cases("method", ["RGreedy", "Stochastic", "Naive"])
def test_classes_keep_their_shares(method):
    gradients = factors(80, 4, 6, 2)
    labels = torch.arange(80) % 5 % 4  # 32 of class 0, 16 of each other one
    gradients = replace(gradients, labels=labels)
    validation = replace(factors(25, 4, 6, 1, seed=3), labels=torch.arange(25) % 4)
    validation = replace(validation, logits=(torch.zeros(25, 4, dtype=torch.float64),))

    def chosen(classes: torch.Tensor | None) -> torch.Tensor:
        return taylor_greedy(
            gradients,
            ValidationGradient(validation, SAT()),
            30,
            step_size=0.01,
            method=method,
            rounds=4,
            generator=torch.Generator().manual_seed(2),
            classes=classes,
        )

    counts = labels[chosen(labels)].bincount(minlength=4).tolist()
    assert counts == apportion([32, 16, 16, 16], 30) == [12, 6, 6, 6]
    assert len(chosen(labels).unique()) == 30
    assert labels[chosen(None)].bincount(minlength=4).tolist() != counts


def test_shares_are_those_of_a_whole_choice():
    with pytest.raises(ValueError, match='class_shares has no effect without granularity = "full"'):
        AdvGLISTERStrategy.Config(class_shares=True)
    problem = Problem([20, 10, 10])
    config = AdvGLISTERStrategy.Config(class_shares=True, granularity="full", greedy="Stochastic", eta=30.0)
    chosen, _ = AdvGLISTERStrategy.from_context(config, problem.context()).select(12, problem.model.state_dict())
    assert problem.train.labels[chosen].bincount().tolist() == [6, 3, 3]


@pytest.mark.parametrize("loss", [SAT(), SAT(label_smoothing=0.1), TRADES()])
def test_the_known_gradient_is_what_differentiation_finds(loss):
    validation = replace(factors(25, 4, 6, len(loss.views), seed=3), labels=torch.arange(25) % 4)
    source = torch.Generator().manual_seed(1)
    logits = tuple(torch.randn(25, 4, generator=source, dtype=torch.float64) for _ in loss.views)
    looking = ValidationGradient(replace(validation, logits=logits), loss)
    leaves = [z.clone().requires_grad_() for z in logits]
    loss.from_logits(dict(zip(loss.views, leaves, strict=True)), validation.labels).mean().backward()
    weight = sum(leaf.grad.T @ h for leaf, h in zip(leaves, validation.features, strict=True))
    bias = sum(leaf.grad.sum(0) for leaf in leaves)
    assert torch.allclose(looking.now(), torch.cat([bias[:, None], weight], dim=1), atol=1e-14)
    chosen = factors(3, 4, 6, 2, seed=9)
    looking.move(chosen, 0.3)
    assert torch.allclose(looking.now(), looking.after(0.3 * chosen.sum()), atol=1e-14)
