"""``robustcords export``: a run's weights as a folder that works without this package."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robustcords.errors import RunError, UserError, nearest, unwritable
from robustcords.experiments import build, robustbench
from robustcords.experiments.definition import definition
from robustcords.experiments.model_card import model_card
from robustcords.models.base import name_of, reason
from robustcords.recipe.recipe import Recipe, load
from robustcords.report.run_report import Report
from robustcords.report.run_tables import data_name
from robustcords.storage.run_directory import RunDirectory

CHECKED = 64
"""Test images on which an exported model has to give the same logits."""

TOLERANCE = 1e-4
"""How far they may be apart, as a share of the largest: another runtime adds up in another order."""


@dataclass(frozen=True)
class Exported:
    """What is exported.

    Attributes:
        model: of the run, in eval mode.
        recipe: the run's.
        classes: their names.
        images: (B, C, H, W) of the test set, on which the model is checked.
        report: the run's, if it has one.
        which: the name of the weights.
        name: of the model, in letters, digits and underscores.
    """

    model: nn.Module
    recipe: Recipe
    classes: tuple[str, ...]
    images: Tensor
    report: Report | None
    which: str
    name: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def config(self) -> dict[str, Any]:
        """What config.json holds."""
        channels, height, width = self.shape
        resize = getattr(self.recipe.data, "frame", None)  # none where images are of one size as they are
        threat = self.recipe.threat
        return {
            "name": self.name,
            "model": self.recipe.model.name,
            "data": data_name(self.recipe.data.name),
            "classes": list(self.classes),
            "images": {"channels": channels, "height": height, "width": width, "resize": resize, "range": [0, 1]},
            "threat": {"norm": threat.norm, "epsilon": threat.epsilon},
            "weights": self.which,
        }


@dataclass(frozen=True)
class Format:
    """A form that a model is written in.

    Attributes:
        file: what the model's file is called.
        write: writes it; returns the model as it is read again.
        script: load.py.
        use: lines of Python for the model card.
    """

    file: str
    write: Callable[[Path, Exported], Callable[[Tensor], Tensor]]
    script: str
    use: str


def export(run_dir: Path, to: str, which: str | None = None, output: Path | None = None) -> Path:
    """Writes a run's weights as a folder; returns the folder.

    It holds the model in the format's own file, ``model.safetensors`` (the plain state dict), ``config.json`` (classes
    and what the model takes), ``load.py`` (a script that loads it without this package) and ``README.md`` (a model card
    with what was measured). The model in it is checked against the original on test images.

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
        raise UserError(f"--output {target}: already exists; name another")
    recipe = load(directory.recipe, of_run=True)
    images = build.data(recipe)
    model = build.model(recipe, images)
    build.load_weights(model, directory.weights(which))
    model.eval()
    x, _ = images.test.first(min(CHECKED, len(images.test)), torch.device("cpu"))
    name = re.sub(r"\W+", "_", run_dir.resolve().name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise unwritable(target, error) from error
    try:
        _write(made, to, Exported(model, recipe, images.test.classes, x, report, which, name))
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


def _write(folder: Path, to: str, exported: Exported) -> None:
    """Writes all files into a folder."""
    form, model = FORMATS[to], exported.model
    with torch.no_grad():
        expected = model(exported.images)
    weights = folder / "model.safetensors"
    # Copies, as safetensors refuses tensors that share memory.
    copies = {key: value.clone(memory_format=torch.contiguous_format) for key, value in model.state_dict().items()}
    save_file(copies, weights)
    try:
        again = form.write(folder / form.file, exported)
        logits = again(exported.images)
    except (UserError, OSError):
        raise
    except Exception as error:  # a model of somebody's own may do what the format has no words for
        raise UserError(f"{name_of(model)} cannot be exported to {to}: {reason(error)}") from error
    _check_same(expected, logits, to)
    weights.chmod((folder / form.file).stat().st_mode)  # it is written for its owner alone
    config = exported.config
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "load.py").write_text(form.script, encoding="utf-8")
    card = model_card(exported.report, config, form.file, form.use)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _check_same(expected: Tensor, found: Tensor, to: str) -> None:
    """Checks that an exported model gives the original's logits."""
    apart = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not apart <= TOLERANCE:
        raise RunError(f"the model exported to {to} gives other logits: {apart:.2g} of the largest apart; not written")


def _any_number() -> tuple[dict[int, Any], ...]:
    """Returns the shape of a model's argument as exports take it: of any number of images."""
    return ({0: torch.export.Dim("images", min=1)},)


def _torch_program(path: Path, exported: Exported) -> Callable[[Tensor], Tensor]:
    """Writes a model as a torch.export program for any number of images; returns it as it is read again."""
    program = torch.export.export(exported.model, (exported.images[:2],), dynamic_shapes=_any_number())
    torch.export.save(program, path)
    return torch.no_grad()(torch.export.load(path).module())


def _onnx(path: Path, exported: Exported) -> Callable[[Tensor], Tensor]:
    """Writes a model as ONNX for any number of images; returns it as onnxruntime runs it."""
    runtime: Any
    try:
        runtime, *_ = (importlib.import_module(name) for name in ("onnxruntime", "onnx", "onnxscript"))
    except ImportError as error:
        raise UserError(
            f"--to onnx needs onnx, onnxscript and onnxruntime: pip install 'robustcords[onnx]' ({error})"
        ) from error
    options: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "external_data": False}
    options |= {"dynamo": True, "dynamic_shapes": _any_number(), "verbose": False}
    torch.onnx.export(exported.model, (exported.images[:2],), path, **options)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _code(path: Path, exported: Exported) -> Callable[[Tensor], Tensor]:
    """Writes the network's definition, of the weights next to it; returns the model that the two make.

    Raises:
        UserError: the definition is of another network, as with a first layer that was replaced.
    """
    path.write_text(definition(exported.recipe, exported.shape, len(exported.classes)), encoding="utf-8")
    model: nn.Module = runpy.run_path(str(path))["Model"]()
    try:
        model.load_state_dict(load_file(path.with_name("model.safetensors")))
    except RuntimeError as error:
        raise UserError(f"{name_of(exported.model)} was changed for the run's images; --to torch takes it") from error
    return torch.no_grad()(model.eval())


def _robustbench(path: Path, exported: Exported) -> Callable[[Tensor], Tensor]:
    """Writes the network's definition and, where RobustBench has it, weights and model info; returns the model.

    Raises:
        UserError: RobustBench has no such data set or threat model, or there is no definition.
    """
    robustbench.check(exported.recipe, len(exported.classes))
    model = _code(path, exported)
    measured = exported.report.evaluation.get(exported.which) if exported.report else None
    robustbench.write_entry(path.parent, exported.name, exported.model, exported.recipe, measured)
    return model


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


def _classifying(file: str, write: Callable[[Path, Exported], Callable[[Tensor], Tensor]], *code: str) -> Format:
    """Returns a format whose script classifies pictures.

    Args:
        file: the model's.
        write: writes it.
        code: lines that import what is needed, that load the model from a ``folder``, and that run it on ``pixels``.
    """
    imports, load, run = code
    script = _SCRIPT.replace("IMPORT", imports).replace("LOAD", load).replace("RUN", run)
    use = f'from pathlib import Path\n\n{imports}\n\nfolder = Path(".")  # this one\n{load}'
    return Format(file, write, script, use)


FORMATS = {
    "hub": _classifying(
        "network.py",
        _code,
        "import torch\nfrom network import Model\nfrom safetensors.torch import load_file",
        "model = Model().eval()  # (B, C, H, W) in [0, 1] to logits\n"
        'model.load_state_dict(load_file(folder / "model.safetensors"))',
        "model(torch.from_numpy(np.ascontiguousarray(pixels)))",
    ),
    "onnx": _classifying(
        "model.onnx",
        _onnx,
        "import onnxruntime",
        'model = onnxruntime.InferenceSession(folder / "model.onnx")  # (B, C, H, W) in [0, 1] to logits',
        'model.run(None, {"images": np.ascontiguousarray(pixels)})[0]',
    ),
    "robustbench": Format("network.py", _robustbench, robustbench.SCRIPT, robustbench.USE),
    "torch": _classifying(
        "model.pt2",
        _torch_program,
        "import torch",
        'model = torch.export.load(folder / "model.pt2").module()  # (B, C, H, W) in [0, 1] to logits',
        "model(torch.from_numpy(np.ascontiguousarray(pixels)))",
    ),
}
"""What a model can be exported to."""
