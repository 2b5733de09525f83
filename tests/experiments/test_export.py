"""A run's model as a folder that is used without this package."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from robustcords.data.pictures import to_array
from robustcords.errors import RunError, UserError
from robustcords.experiments import build, export
from robustcords.recipe import recipe

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


@pytest.mark.parametrize("to", ["torch", "onnx"])
def test_the_script_says_what_the_model_says(to: str, run: Path, tmp_path: Path) -> None:
    folder = export.export(run, to, output=tmp_path / "model")
    assert list(tmp_path.iterdir()) == [folder], "nothing unfinished is left"
    model, x = original(run)
    with torch.no_grad():
        expected = model(x)
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    if to == "torch":
        found = torch.export.load(folder / "model.pt2").module()(x)
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
    code = "import runpy, sys; sys.modules['robustcords'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0])"
    arguments = [sys.executable, "-c", code, str(folder / "load.py"), *map(str, paths)]
    said = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [f"{path} {name}" for path, name in zip(paths, named, strict=True)]


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_script_sees_of_a_photograph_what_evaluation_has_seen(
    orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = '(np.save(folder / "seen.npy", pixels), np.zeros((1, 2)))[1]'
    (tmp_path / "load.py").write_text(export._script("", "", look))
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


def test_a_run_without_a_report_has_a_card_that_claims_nothing(run: Path) -> None:
    config = {
        "model": "resnet8",
        "classes": ["a", "b"],
        "images": {"channels": 1, "height": 8, "width": 6},
        "threat": {"norm": "linf", "epsilon": 8 / 255},
        "weights": "last",
    }
    card = export.model_card(None, config, "model.pt2")
    assert card.startswith("---\nlibrary_name: pytorch\n")
    assert "1 x 8 x 6" in card
    assert "Measured" not in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onx"}, r"--to onx: unknown format; did you mean 'onnx'\? \(one of: onnx, torch\)"),
        ({"which": "best"}, "--weights best: the run has last"),
        ({"output": Path("taken")}, "--output taken: already there; name another"),
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
    file, write, script = export.FORMATS["torch"]

    def wrong(path: Path, model: nn.Module, x: torch.Tensor) -> object:
        again = write(path, model, x)
        return lambda images: again(images) * 1.01

    monkeypatch.setitem(export.FORMATS, "torch", (file, wrong, script))
    with pytest.raises(RunError, match=r"gives other logits: 0\.01 of the largest apart; not written"):
        export.export(run, "torch", output=tmp_path / "model")
    assert not list(tmp_path.iterdir())
