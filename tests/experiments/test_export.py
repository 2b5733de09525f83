"""A run's model as a folder that is used without this package."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from support.made_data import table
from torch import nn

from robustcords.data.pixels import to_array
from robustcords.errors import RunError, UserError
from robustcords.evaluation.results import Evaluation
from robustcords.experiments import build, export, robustbench
from robustcords.experiments.definition import definition
from robustcords.experiments.model_card import model_card
from robustcords.models.robustbench import RobustBenchModel
from robustcords.recipe import recipe
from robustcords.report.run_report import Environment, Report, summarise

WIDTH = ["model.width=4", "threat.epsilon=0.15"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with weights, of a network whose BatchNorms have seen images, and no report."""
    folder = tmp_path_factory.mktemp("export") / "a run"
    loaded = recipe.load("digits_mart", WIDTH)
    images = build.data(loaded)
    model = build.model(loaded, images).train()
    with torch.no_grad():
        model(images.train.first(64)[0])
    (folder / "weights").mkdir(parents=True)
    (folder / "recipe.toml").write_text(recipe.dump(loaded))
    save_file(model.state_dict(), folder / "weights" / "last.safetensors")
    return folder


def original(run: Path) -> tuple[nn.Module, torch.Tensor]:
    """Returns the run's model and test images."""
    loaded = recipe.load(run / "recipe.toml", of_run=True)
    images = build.data(loaded)
    model = build.model(loaded, images)
    build.load_weights(model, run / "weights" / "last.safetensors")
    return model.eval(), images.test.first(5)[0]


@pytest.mark.parametrize("to", ["torch", "onnx", "hub"])
def test_the_script_says_what_the_model_says_without_this_package(
    to: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, hide_package: Callable[[], None]
) -> None:
    folder = export.export(run, to, output=tmp_path / "model")
    assert list(tmp_path.iterdir()) == [folder], "nothing unfinished is left"
    model, x = original(run)
    with torch.no_grad():
        expected = model(x)
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    if to == "torch":
        found = torch.export.load(folder / "model.pt2").module()(x)
    elif to == "hub":
        network = runpy.run_path(str(folder / "network.py"))["Model"]().eval()
        network.load_state_dict(weights)
        found = network(x)
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx")
        found = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    config = json.loads((folder / "config.json").read_text())
    assert config["classes"] == [str(digit) for digit in range(10)]
    taken = {"channels": 1, "height": 8, "width": 8, "resize": None, "range": [0, 1]}
    assert (config["images"], config["weights"]) == (taken, "last")
    pixels = (x[:2, 0] * 255).round().to(torch.uint8)
    paths = [tmp_path / f"{row}.png" for row in range(2)]
    for path, picture in zip(paths, pixels.numpy(), strict=True):
        Image.fromarray(np.asarray(picture)).save(path)
    with torch.no_grad():
        named = model(pixels[:, None] / 255).argmax(1).tolist()
    hide_package()
    monkeypatch.setattr("sys.argv", ["load.py", *map(str, paths)])
    monkeypatch.syspath_prepend(folder)
    runpy.run_path(str(folder / "load.py"))
    sys.modules.pop("network", None)  # another test's folder has another one
    assert capsys.readouterr().out.splitlines() == [f"{path} {name}" for path, name in zip(paths, named, strict=True)]


_OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(64, num_classes)
        self.same_head = self.head

    def forward(self, x):
        return {"logits": self.head(x.flatten(1)), "features": x}
"""


def test_a_custom_model_with_shared_weights_and_several_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_for_export.py").write_text(_OWN)
    monkeypatch.syspath_prepend(tmp_path)
    loaded = recipe.load("digits_mart", ["model.name=own_for_export:Net"])
    model = build.model(loaded, build.data(loaded))
    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    (run / "recipe.toml").write_text(recipe.dump(loaded))
    save_file({key: value.clone() for key, value in model.state_dict().items()}, run / "weights" / "last.safetensors")
    folder = export.export(run, "torch", output=tmp_path / "model")
    assert load_file(folder / "model.safetensors").keys() == model.state_dict().keys()
    x = torch.rand(5, 1, 8, 8)
    found = torch.export.load(folder / "model.pt2").module()(x)
    torch.testing.assert_close(found, model.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_script_sees_of_a_photograph_what_evaluation_has_seen(
    orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = '(np.save(folder / "seen.npy", pixels), np.zeros((1, 2)))[1]'
    (tmp_path / "load.py").write_text(export._classifying("", export._code, "", "", look).script)
    images = {"channels": 3, "height": 20, "width": 20, "resize": 24}
    (tmp_path / "config.json").write_text(json.dumps({"images": images, "classes": ["a", "b"]}))
    exif = Image.Exif()
    exif[0x0112] = orientation
    photograph = Image.effect_noise((50, 33), 80).convert("RGB")
    photograph.save(tmp_path / "photograph.png", exif=exif)
    monkeypatch.setattr("sys.argv", ["load.py", str(tmp_path / "photograph.png")])
    runpy.run_path(str(tmp_path / "load.py"))
    expected = to_array(tmp_path / "photograph.png", 24)[:, 2:22, 2:22]
    assert np.array_equal((np.load(tmp_path / "seen.npy")[0] * 255).round(), expected)


CONFIG = {
    "name": "mine",
    "model": "resnet8",
    "data": "pets",
    "classes": ["a", "b"],
    "images": {"channels": 1, "height": 8, "width": 6},
    "threat": {"norm": "linf", "epsilon": 8 / 255},
    "weights": "last",
}


def test_a_run_without_a_report_has_a_card_that_claims_nothing() -> None:
    card = model_card(None, CONFIG, "model.pt2", "from load import model")
    assert card.startswith("---\nlibrary_name: pytorch\n")
    assert "1 x 8 x 6" in card
    assert "Measured" not in card
    assert "model-index" not in card


def test_the_card_has_what_was_measured_as_metadata_and_as_a_table() -> None:
    card = model_card(report_of(clean=0.75, pgd={"8/255": 0.5}, pgd_attack="PGD-50-10"), CONFIG, "model.pt2", "")
    metadata = yaml.safe_load(card.split("---\n")[1])
    (result,) = metadata["model-index"][0]["results"]
    assert (metadata["datasets"], result["dataset"]["name"]) == (["pets"], "pets")
    assert [(each["name"], each["value"]) for each in result["metrics"]] == [
        ("clean", 0.75),
        ("PGD-50-10, linf 8/255", 0.5),
    ]
    assert "| PGD-50-10 | 8/255 | 10 | 50.00 ± 26.34 |" in card


def report_of(**measured: object) -> Report:
    """Returns the report of an evaluation of the last weights on ten images."""
    recipe_ = tomllib.loads(recipe.dump(recipe.load("digits_mart")))
    around = Environment(versions={}, device="CPU", world_size=1, threads=1)
    return summarise(recipe_, around, [], [], {"last": Evaluation(examples=10, sample="all", **measured)})


@pytest.mark.parametrize(
    "name",
    ["resnet8", "preactresnet18", "wrn-28-10", "torchvision:resnet18", "timm:resnet18", "timm:vit_tiny_patch16_224"],
)
def test_a_definition_is_of_the_same_network(name: str, tmp_path: Path) -> None:
    small = {"wrn-28-10": ["depth=10", "widen_factor=1"], "preactresnet18": ["width=4"], "resnet8": ["width=4"]}
    options = [f"model.{option}" for option in small.get(name, [])]
    size = 224 if "224" in name else 32
    loaded = recipe.load("digits_mart", [f"model.name={name}", *options])
    model = build.component("model", loaded.model).build(3, size, 7, [0.4] * 3, [0.2] * 3, seed=0).eval()
    (tmp_path / "network.py").write_text(definition(loaded, (3, size, size), 7))
    again = runpy.run_path(str(tmp_path / "network.py"))["Model"]()
    again.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, size, size)
    assert torch.equal(again.eval()(x), model(x))
    assert "robustcords" not in (tmp_path / "network.py").read_text()


def test_a_network_without_a_definition() -> None:
    loaded = recipe.load("digits_mart", ["model.name=torchvision.models:resnet18"])
    with pytest.raises(UserError, match="there is no code to write for it: only for the models of this package, torch"):
        definition(loaded, (1, 8, 8), 10)


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a data set of RobustBench's, ten images of 8 x 8 pixels, with weights and no report."""
    folder = tmp_path_factory.mktemp("robustbench")
    for split in ("train", "test"):
        table(folder / "data" / f"{split}.parquet", list(range(10)) * 2)
    options = ["model.name=resnet8", "model.width=4", f"data.path={folder / 'data'}", "data.validation_fraction=0"]
    loaded = recipe.load("cifar10_trades", options)
    images = build.data(loaded)
    model = build.model(loaded, images).train()
    with torch.no_grad():
        model(images.train.first(20)[0])
    (folder / "my run" / "weights").mkdir(parents=True)
    (folder / "my run" / "recipe.toml").write_text(recipe.dump(loaded))
    save_file(model.state_dict(), folder / "my run" / "weights" / "last.safetensors")
    return folder / "my run"


def test_robustbench_has_the_weights_where_it_looks_and_the_model_info(cifar10: Path, tmp_path: Path) -> None:
    folder = export.export(cifar10, "robustbench", output=tmp_path / "entry")
    state = torch.load(folder / "models/cifar10/Linf/my_run.pt")
    assert all(torch.equal(state[name], value) for name, value in load_file(folder / "model.safetensors").items())
    info = json.loads((folder / "model_info/cifar10/Linf/my_run.json").read_text())
    assert (info["dataset"], info["architecture"], info["eps"]) == ("cifar10", "ResNet-8", "8/255")
    assert "clean_acc" not in info, "nothing was measured"


def test_model_info_has_accuracies_of_all_test_images_alone() -> None:
    attacked = {"autoattack": {"8/255": 0.41234}, "autoattack_examples": 10, "autoattack_version": "standard"}
    whole = Evaluation(clean=0.8, examples=10, sample="all", autoattack_sample="all", **attacked)
    loaded = recipe.load("cifar10_trades")
    info = robustbench.model_info(loaded, whole)
    assert (info["clean_acc"], info["autoattack_acc"], info["reported"]) == ("80.00", "41.23", "41.23")
    assert (info["architecture"], info["additional_data"], info["unreliable"]) == ("ResNet-18", False, False)
    part = robustbench.model_info(loaded, whole.model_copy(update={"autoattack_sample": "stratified"}))
    assert "clean_acc" in part
    assert "autoattack_acc" not in part


def test_robustbench_measures_the_clean_accuracy_that_we_do(
    cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        RobustBenchModel.library()
    except UserError as error:  # not installed, or what torchattacks has of it, which needs an old setuptools
        pytest.skip(str(error))
    evaluation = importlib.import_module("robustbench.eval")
    folder = export.export(cifar10, "robustbench", output=tmp_path / "entry")
    monkeypatch.syspath_prepend(folder)
    loaded = runpy.run_path(str(folder / "load.py"))
    run = recipe.load(cifar10 / "recipe.toml", of_run=True)
    images = build.data(run)
    model = build.model(run, images)
    build.load_weights(model, cifar10 / "weights" / "last.safetensors")
    x, y = images.test.first(20)
    expected = float((model.eval()(x).argmax(1) == y).float().mean())
    assert torch.equal(loaded["model"](x), model(x))
    unbroken = SimpleNamespace(run_standard_evaluation=lambda x, y, **_: x)
    monkeypatch.setattr(evaluation, "AutoAttack", lambda *_, **__: unbroken)
    monkeypatch.setattr(evaluation, "load_clean_dataset", lambda *_: (x, y))
    found, _ = evaluation.benchmark(loaded["model"], 20, "cifar10", "Linf", eps=8 / 255)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onx"}, r"--to onx: unknown format; did you mean 'onnx'\? \(one of: hub, onnx, robustbench, torch\)"),
        (
            {"to": "robustbench"},
            "--to robustbench: its data sets are cifar10, cifar100, imagenet, and the run's is 'digits'",
        ),
        ({"which": "best"}, "--weights best: the run has last"),
        ({"output": Path("taken")}, "--output taken: already exists; name another"),
    ],
)
def test_what_cannot_be_exported(
    options: dict[str, object], message: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    Path("taken/mine").touch()
    with pytest.raises(UserError, match=f"^{message}$"):
        export.export(run, **{"to": "torch", **options})  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run directory \(it has no recipe.toml\)$"):
        export.export(tmp_path, "torch")


def test_a_model_that_comes_out_different_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = export.FORMATS["torch"]

    def wrong(path: Path, exported: export.Exported) -> object:
        again = form.write(path, exported)
        return lambda images: again(images) * 1.01

    monkeypatch.setitem(export.FORMATS, "torch", replace(form, write=wrong))
    with pytest.raises(RunError, match=r"gives other logits: 0\.01 of the largest apart; not written"):
        export.export(run, "torch", output=tmp_path / "model")
    assert not list(tmp_path.iterdir())
