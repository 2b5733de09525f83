"""A model that is lent comes back as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cases import cases
from torch import Tensor, nn

from robustcords.engine.foreign_calls import left_alone
from robustcords.engine.modes import modes_kept
from robustcords.errors import UserError


def network() -> nn.Sequential:
    made = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 2))
    made[1].eval()  # frozen on purpose
    made[3].bias.requires_grad_(False)
    return made


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_modes_come_back_each_on_its_own_also_after_an_error():
    model = network()
    before = modes(model)
    assert before == [True, True, False, True, True]
    for change in (model.eval, model.train):
        with modes_kept(model):
            change()
        assert modes(model) == before
    with pytest.raises(KeyError), left_alone(model, "strategy mine:S"):
        model.eval()
        raise KeyError
    assert modes(model) == before
    with modes_kept(Tensor.sum):
        pass


def test_gradients_and_what_requires_one_come_back():
    model = network()
    model(torch.ones(2, 4)).sum().backward()
    before = [None if each.grad is None else each.grad.clone() for each in model.parameters()]
    with left_alone(model, "strategy mine:S"):
        model.eval()(torch.rand(2, 4)).square().sum().backward()
        model.requires_grad_(False)
    for parameter, gradient in zip(model.parameters(), before, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert [each.requires_grad for each in model.parameters()] == [True, True, True, True, True, False]


def test_the_same_weights_may_be_loaded():
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with left_alone(model, "strategy mine:S"):
        model.load_state_dict(copy.deepcopy(model.state_dict()))


def swap(model: Any) -> None:
    model[3] = nn.Linear(3, 2)


@cases(
    ("change", "said"),
    [
        (lambda model: model[0].weight.data.mul_(1.5), "'0.weight'; "),
        (lambda model: model[1].train()(torch.rand(4, 3)), "'1.num_batches_tracked' and 2 more; "),
        (swap, "'3.bias' and 1 more; "),
        (lambda model: model.register_buffer("seen", torch.ones(1)), "'seen'; "),
        (lambda model: model.double(), "'0.bias' and 7 more; "),
    ],
)
def test_what_changes_weights_or_buffers_is_named(change: Callable[[nn.Module], Any], said: str):
    model = network()
    with pytest.raises(UserError) as raised, left_alone(model, "strategy mine:S"):
        change(model)
    assert str(raised.value) == f"strategy mine:S changed the model it was lent: {said}work on a copy (copy.deepcopy)"
