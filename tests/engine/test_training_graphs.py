"""Recorded passes of updates: training with recordings that run the code again is training without."""

from typing import Any

import pytest
import torch
from support import small_run
from support.cases import cases
from support.recordings import Again
from support.small_run import fitted, vector
from torch import Tensor, nn

from robustcords.engine import training_graphs
from robustcords.engine.training_graphs import TrainingReplays, replayable
from robustcords.methods.efforts.bullet import Bullet
from robustcords.models.resnet import ResNet


def network(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return ResNet(name="resnet8", width=4, **changes).network(3, 8, 10)


def images(count: int) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def test_steps_of_two_views_and_sizes_give_the_weights_and_statistics_of_the_network_itself():
    plain, recorded = network(), network()
    replays = TrainingReplays(recorded, Again)
    for size in (6, 6, 5, 6):
        replays.begin()
        for model, trained in ((plain, plain), (replays, recorded)):
            clean, adversarial = model(images(size)), model(images(size) + 0.1)
            (clean.square().mean() - (clean * adversarial).mean()).backward()
            with torch.no_grad():
                for parameter in trained.parameters():
                    parameter.sub_(parameter.grad, alpha=0.1)
                    parameter.grad = None
    assert len(replays._recorded) == 4
    for name, value in plain.state_dict().items():
        assert torch.equal(value, recorded.state_dict()[name]), name


def test_other_passes_are_those_of_the_network_itself():
    model = network()
    replays, x = TrainingReplays(model, Again), images(4)
    with torch.no_grad():
        replays(x)
    x.requires_grad_()
    assert torch.autograd.grad(replays(x).sum(), x)[0].abs().sum() > 0
    model.eval()
    replays(images(4)).sum().backward()
    model.train()
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    called = torch.func.functional_call(
        replays, {f"network.{name}": value for name, value in weights.items()}, images(4)
    )
    called.sum().backward()
    assert weights["fc.weight"].grad is not None
    assert replays._recorded == {}


def test_a_forward_pass_is_differentiated_once_and_before_it_is_repeated():
    replays = TrainingReplays(network(), Again)
    first = replays(images(4))
    replays.begin()
    replays(images(4))
    with pytest.raises(RuntimeError, match="before this backward pass"):
        first.sum().backward()


@cases(
    ("change", "accepted"),
    [
        (lambda model: None, True),
        (lambda model: model.register_module("more", nn.Dropout(0.1)), False),
        (lambda model: model.register_module("more", nn.BatchNorm2d(3, momentum=None)), False),
        (lambda model: model.fc.register_forward_hook(lambda *_: None), False),
    ],
)
def test_which_networks_are_recorded(change: Any, accepted: bool):
    model = network()
    change(model)
    assert replayable(model) is accepted


def test_a_run_with_recorded_updates_ends_with_the_same_weights(monkeypatch: pytest.MonkeyPatch):
    made: list[Again] = []
    monkeypatch.setattr(training_graphs, "recorder_for", lambda device: made.append(Again()) or made[-1])
    options = {"loss": "mart", "effort": Bullet}
    expected, found = (
        fitted(model=small_run.network(norm=True), settings={"cuda_graphs": value, "accumulation": 2}, **options)
        for value in (True, "all")
    )
    assert torch.equal(vector(found), vector(expected))
    sizes = {part for size in (16, 15) for part in (size // 2, size - size // 2)}
    assert len([each for each in made if each.recorded]) == 2 * len(sizes), "those of clean and adversarial images"
