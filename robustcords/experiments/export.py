"""``robustcords export``: a run's weights as a folder that works without this package."""

from __future__ import annotations

import importlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustcords.data.images import Images
from robustcords.errors import RunError, UserError, nearest, unwritable
from robustcords.experiments import build
from robustcords.models.base import name_of, reason
from robustcords.recipe.recipe import Recipe, load
from robustcords.report.markdown import plain
from robustcords.report.run_report import Report
from robustcords.report.run_tables import accuracy_table, title
from robustcords.storage.run_directory import RunDirectory

CHECKED = 64
"""Test images on which an exported model has to give the same logits."""

TOLERANCE = 1e-4
"""How far they may be apart, as a share of the largest: another runtime adds up in another order."""


def export(run_dir: Path, to: str, which: str | None = None, output: Path | None = None) -> Path:
    """Writes a run's weights as a folder; returns the folder.

    It holds the model in the format's own file, ``model.safetensors`` (the plain state dict), ``config.json`` (classes
    and what the model takes), ``load.py`` (a script that classifies pictures without this package) and ``README.md`` (a
    model card with what was measured). The model in it is checked against the original on test images.

    Args:
        run_dir: a run with weights.
        to: one of `FORMATS`.
        which: ``"last"`` or ``"best"``; None for those that were evaluated, best before last.
        output: the folder; None for ``NAME-FORMAT`` in the current folder. It must be new or empty.

    Raises:
        UserError: the run, the format, the weights or the folder cannot be used, or the format needs a package that is
            not installed.
        RunError: the exported model gives other logits.
    """
    if to not in FORMATS:
        raise UserError(f"--to {to}: unknown format{nearest(to, FORMATS)}")
    directory = RunDirectory.of_run(run_dir)
    report = Report.read(directory.report) if directory.finished else None
    which = _chosen(directory, which, report)
    target = output or Path(f"{run_dir.resolve().name}-{to}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"--output {target}: already there; name another")
    recipe = load(directory.recipe, of_run=True)
    images = build.data(recipe)
    model = build.model(recipe, images)
    build.load_weights(model, directory.weights(which))
    model.eval()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise unwritable(target, error) from error
    try:
        _write(made, to, model, recipe, images.test, report, which)
        made.chmod(0o755)
        made.replace(target)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return target


def _chosen(directory: RunDirectory, which: str | None, report: Report | None) -> str:
    """Returns the name of the weights to export."""
    there = [name for name in ("best", "last") if directory.weights(name).exists()]
    if not there:
        raise UserError(f"{directory.path}: no weights yet; has the run finished?")
    if which is not None and which not in there:
        raise UserError(f"--weights {which}: the run has {' and '.join(there)}")
    measured = [name for name in there if report and name in report.evaluation]
    return which or (measured or there)[0]


def _write(
    folder: Path, to: str, model: nn.Module, recipe: Recipe, test: Images, report: Report | None, which: str
) -> None:
    """Writes all files into a folder."""
    x, _ = test.first(min(CHECKED, len(test)), torch.device("cpu"))
    with torch.no_grad():
        expected = model(x)
    file, write, script = FORMATS[to]
    try:
        again = write(folder / file, model, x)
    except (UserError, OSError):
        raise
    except Exception as error:  # a model of somebody's own may do what the format has no words for
        raise UserError(f"{name_of(model)} cannot be exported to {to}: {reason(error)}") from error
    _check_same(expected, again(x), to)
    weights = folder / "model.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    weights.chmod((folder / file).stat().st_mode)  # it is written for its owner alone
    channels, height, width = test.shape
    resize = getattr(recipe.data, "frame", None)  # none where images are of one size as they are
    config = {
        "model": recipe.model.name,
        "classes": list(test.classes),
        "images": {"channels": channels, "height": height, "width": width, "resize": resize, "range": [0, 1]},
        "threat": {"norm": recipe.threat.norm, "epsilon": recipe.threat.epsilon},
        "weights": which,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "load.py").write_text(script.replace("FILE", file), encoding="utf-8")
    (folder / "README.md").write_text(model_card(report, config, file), encoding="utf-8")


def _check_same(expected: Tensor, found: Tensor, to: str) -> None:
    """Checks that an exported model gives the original's logits."""
    apart = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not apart <= TOLERANCE:
        raise RunError(f"the model exported to {to} gives other logits: {apart:.2g} of the largest apart; not written")


def model_card(report: Report | None, config: dict[str, Any], file: str) -> str:
    """Returns README.md: what the model is, what was measured, and how it is loaded.

    Args:
        report: the run's; None where it has none.
        config: what config.json holds.
        file: the model's.
    """
    images, threat = config["images"], config["threat"]
    front = [
        "---",
        "library_name: pytorch",
        "pipeline_tag: image-classification",
        "tags: [adversarial-robustness]",
        "---",
    ]
    size = " x ".join(str(images[key]) for key in ("channels", "height", "width"))
    lines = [
        *front,
        f"# {plain(title(report)) if report else plain(config['model'])}",
        "",
        f"An image classifier of {len(config['classes'])} classes, trained to be robust to perturbations of norm "
        f"{threat['norm']} up to {threat['epsilon']:.4g} with robustcords. It takes images of {size} with pixels in "
        "[0, 1]; the normalisation is its first layer.",
        "",
    ]
    which = config["weights"]
    if report and which in report.evaluation:
        of_these = report.model_copy(update={"evaluation": {which: report.evaluation[which]}})
        lines += ["## Measured", "", accuracy_table(of_these), ""]
    lines += [
        "## Use",
        "",
        f"`{file}` is the model, `model.safetensors` its weights by name; `config.json` says what it takes and names "
        "the classes. `python load.py PICTURE...` classifies pictures: it shows in a few lines how to load the model.",
        "",
    ]
    return "\n".join(lines)


def _any_number() -> tuple[dict[int, Any], ...]:
    """Returns the shape of a model's argument as exports take it: of any number of images."""
    return ({0: torch.export.Dim("images", min=1)},)


def _torch_program(path: Path, model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Writes a model as a torch.export program for any number of images; returns it as it is read again."""
    program = torch.export.export(model, (x[:2],), dynamic_shapes=_any_number())
    torch.export.save(program, path)
    again = torch.export.load(path).module()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = again(images)
        return logits

    return run


def _onnx(path: Path, model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Writes a model as ONNX for any number of images; returns it as onnxruntime runs it."""
    runtime: Any
    try:
        runtime, *_ = (importlib.import_module(name) for name in ("onnxruntime", "onnx", "onnxscript"))
    except ImportError as error:
        raise UserError(
            f"--to onnx needs onnx, onnxscript and onnxruntime: pip install 'robustcords[onnx]' ({error})"
        ) from error
    options: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "external_data": False}
    torch.onnx.export(model, (x[:2],), path, dynamo=True, dynamic_shapes=_any_number(), verbose=False, **options)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


_SCRIPT = '''"""Classifies pictures: python load.py PICTURE..."""

import json
import sys
from pathlib import Path

import numpy as np
IMPORT
from PIL import Image, ImageOps

folder = Path(__file__).parent
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
height, width, shorter = (config["images"][key] for key in ("height", "width", "resize"))
mode = "L" if config["images"]["channels"] == 1 else "RGB"
LOAD

for path in sys.argv[1:]:
    picture = ImageOps.exif_transpose(Image.open(path)).convert(mode)
    if shorter:  # is what the shorter side is resized to; the centre is what the model has seen
        sides = [shorter * side // min(picture.size) for side in picture.size]
        left, top = round((sides[0] - width) / 2), round((sides[1] - height) / 2)
        picture = picture.resize(sides, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
    else:
        picture = picture.resize((width, height))
    pixels = np.asarray(picture, dtype=np.float32).reshape(1, height, width, -1).transpose(0, 3, 1, 2) / 255
    logits = RUN
    print(path, config["classes"][int(logits.argmax())])
'''


def _script(load: str, model: str, run: str) -> str:
    return _SCRIPT.replace("IMPORT", load).replace("LOAD", model).replace("RUN", run)


_TORCH = _script(
    "import torch",
    'model = torch.export.load(folder / "FILE").module()  # (B, C, H, W) in [0, 1] to logits',
    "model(torch.from_numpy(np.ascontiguousarray(pixels)))",
)
_ONNX = _script(
    "import onnxruntime",
    'model = onnxruntime.InferenceSession(folder / "FILE")  # (B, C, H, W) in [0, 1] to logits',
    'model.run(None, {"images": np.ascontiguousarray(pixels)})[0]',
)

FORMATS: dict[str, tuple[str, Callable[[Path, nn.Module, Tensor], Callable[[Tensor], Tensor]], str]] = {
    "onnx": ("model.onnx", _onnx, _ONNX),
    "torch": ("model.pt2", _torch_program, _TORCH),
}
"""What a model can be exported to: the model's file, what writes it, and the script that loads it."""
