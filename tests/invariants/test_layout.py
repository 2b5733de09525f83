"""A model is rehearsed before anything is written: layout, train and eval mode, what a selection asks of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command_line import SMALL, Command, refused, settings
from support.small_run import chooser, fitted, made_up, network, trainer
from torch import Tensor, nn

from robustcords.engine.memory_format import lay_out
from robustcords.errors import UserError
from robustcords.models.last_layer import LastLayer
from robustcords.recipe import recipe
from robustcords.storage.run_directory import RunDirectory
from robustcords.training.rehearsal import Rehearsal

NETS = """
from torch import nn


class LeNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3)
        self.fc = nn.Linear(128, num_classes)

    def forward(self, x):
        x = self.second(self.first(x).relu()).relu()
        return self.fc(x.view(x.size(0), -1))


class Cubes(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body, self.fc = nn.Conv3d(1, 4, 3, padding=1), nn.Linear(256, num_classes)

    def forward(self, x):
        return self.fc(self.body(x.unsqueeze(2)).relu().flatten(1))


class LogSoftmax(LeNet):
    def forward(self, x):
        return super().forward(x).log_softmax(1)


class Temperature(LeNet):
    def forward(self, x):
        return super().forward(x) / 2


class TwoHeads(Cubes):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.other = nn.Linear(256, num_classes)

    def forward(self, x):
        h = self.body(x.unsqueeze(2)).relu().flatten(1)
        return (self.fc(h) + self.other(h)) / 2


class Auxiliary(Cubes):
    def forward(self, x):
        z = super().forward(x)
        return (z, z) if self.training else z


class Detached(Cubes):
    def forward(self, x):
        return super().forward(x.detach())


class Sparse(Cubes):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.shift = nn.Embedding(1, 256, sparse=True)

    def forward(self, x):
        h = self.body(x.unsqueeze(2)).relu().flatten(1)
        return self.fc(h + self.shift(x.new_zeros(1, dtype=int)))

"""


@pytest.fixture(autouse=True)
def nets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(folder)


def of(net: str, **values: Any) -> list[str]:
    """Returns the arguments of a small run of one of these networks."""
    return ["run", "digits_mart", *_pairs(SMALL), *settings(model__name=f"nets:{net}", **values), "--output", "run"]


def _pairs(options: list[str]) -> list[str]:
    """Returns options without those of a size, which these networks do not have."""
    return [part for text in options[1::2] if not text.startswith("model.") for part in ("--set", text)]


@pytest.mark.parametrize(("net", "layout"), [("LeNet", "contiguous"), ("Cubes", "channels_last")])
def test_ordinary_models_train_in_the_layout_that_they_run_in(command: Command, net: str, layout: str):
    answer = command(*of(net))
    assert answer.status == 0, answer.err
    assert recipe.load("run/recipe.toml").train.memory_format == layout
    report = json.loads(Path("run/report.json").read_text())
    assert report["recipe"]["train"]["memory_format"] == layout
    # More epochs go on in the layout that was taken, also where the recipe says "auto".
    assert command(*of(net, train__epochs=3), "--resume").status == 0
    assert recipe.load("run/recipe.toml").train.memory_format == layout
    assert command("evaluate", "run", "--attack", "pgd").status == 0
    select = ("select", "digits_mart", *_pairs(SMALL), "--set", f"model.name=nets:{net}")
    assert command(*select, "--weights", "run/weights/last.safetensors", "--output", "chosen.npz").status == 0


@pytest.mark.parametrize(
    ("net", "values", "parts"),
    [
        ("LeNet", {"train__memory_format": "channels_last"}, ["'nets:LeNet'", "view size", '"auto" takes a layout']),
        ("Auxiliary", {}, ["model 'nets:Auxiliary' returns a tuple of tensors"]),
        ("Temperature", {"train__memory_format": "contiguous"}, ["model 'nets:Temperature': selection by gradients"]),
        ("TwoHeads", {}, ["model 'nets:TwoHeads': selection by gradients needs nn.Linear", "several heads"]),
        ("TwoHeads", {"selector__name": "gradmatch"}, ["model 'nets:TwoHeads': selection by gradients needs"]),
        ("Detached", {}, ["model 'nets:Detached': no gradient reaches the images"]),
        ("Sparse", {}, ["model 'nets:Sparse' has sparse gradients", "sparse=False"]),
        ("Cubes", {"selector__name": "adv-gradmatch", "selector__valid": "true", "data__validation_fraction": 0},
         ["selects with validation images because of selector.valid"]),
    ],
)  # fmt: skip
def test_what_the_first_selection_or_step_would_refuse_is_refused_before_anything_is_written(
    command: Command, net: str, values: dict[str, Any], parts: list[str]
):
    values = {"evaluation__checkpoints": '["last"]', **values}
    refused(command(*of(net, **values)), *parts)


def test_a_log_softmax_is_refused_by_selectors_on_gradients_alone(command: Command):
    answer = command(*of("LogSoftmax", train__memory_format="contiguous", selector__name="adv-glister"))
    refused(answer, "model 'nets:LogSoftmax'", "log-softmax", 'selector.name = "random"')
    assert command(*of("LogSoftmax", selector__name="random")).status == 0


class Odd(nn.Module):
    """Has all that a pass can change: BatchNorm, dropout, a mode of one part, and a batch size that it needs."""

    def __init__(self, least: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        self.fc, self.least = nn.Linear(4 * 36, 3), least
        self.seen: list[tuple[int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), self.training))
        if self.training and len(x) < self.least:
            raise ValueError(f"at least {self.least} images")
        return self.fc(self.body(x))


def test_a_rehearsal_leaves_the_model_and_the_random_state_as_they_were():
    model = Odd()
    model.body[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    taken = Rehearsal(made_up(), torch.device("cpu"), updates=[7, 9]).settle(model, "auto")
    assert taken == "channels_last"
    assert model.body[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert {(7, True), (9, True), (2, False)} <= set(model.seen)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_runs_the_batches_that_training_will_meet():
    # 61 images in batches of at most 16: four batches of 15 and 16, in micro-batches of 7 and 8.
    model = Odd()
    made = trainer(model=model, settings={"accumulation": 2, "memory_format": "auto"})
    rehearsed = {size for size, training in model.seen if training}
    model.seen.clear()
    made.fit()
    met = {size for size, training in model.seen if training}
    assert {min(met), max(met)} == rehearsed
    message = r"^model 'Odd' cannot be trained on 7 images of 1 x 8 x 8: ValueError: at least 8"
    with pytest.raises(UserError, match=message):
        trainer(model=Odd(least=8), settings={"accumulation": 2})
    message = "cannot be trained on 1 image of 1 x 8 x 8: ValueError: .* BatchNorm: raise train.batch_size, or lower"
    with pytest.raises(UserError, match=message):
        trainer(model=network(norm=True), settings={"accumulation": 8})


def test_tensors_of_other_dimensions_stay_as_they_are():
    model = nn.ModuleList([nn.Conv3d(2, 3, 3), nn.Conv2d(2, 3, 3), nn.Linear(2, 3)])
    before = [parameter.clone() for parameter in model.parameters()]
    lay_out(model, torch.device("cpu"), "channels_last")
    assert model[0].weight.is_contiguous()
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last) and not model[1].weight.is_contiguous()
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))
    lay_out(model, torch.device("cpu"), "contiguous")
    assert model[1].weight.is_contiguous()


def test_a_model_may_have_more_outputs_than_classes_and_no_fewer():
    images = made_up()
    fitted(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), train=images)
    with pytest.raises(UserError, match=r"^model 'Sequential' returned shape \(2, 2\), expected \(2, 3\)"):
        trainer(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), train=images)


def test_python_users_are_told_before_training_too(tmp_path: Path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.LogSoftmax(1))
    with pytest.raises(UserError, match="model 'Sequential': selection by gradients"):
        trainer(model=model, selector=chooser("adv-gradmatch"))
    with pytest.raises(UserError, match="something follows it"):
        LastLayer(model.eval()).features_and_logits(torch.rand(2, 1, 8, 8))
    fitted(model=model, selector=chooser("random"), run=tmp_path / "run")
    assert RunDirectory(tmp_path / "run").weights("last").exists()
