"""A run as an entry of RobustBench's model zoo: weights where its loader looks, the network's code, and the figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustcords.config.schema import format_radius
from robustcords.errors import UserError
from robustcords.evaluation.results import Evaluation
from robustcords.recipe.recipe import Recipe

_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_THREATS = {"linf": "Linf", "l2": "L2"}
_ARCHITECTURES = {"preactresnet": "PreActResNet-", "resnet": "ResNet-", "wrn-": "WideResNet-"}


def check(recipe: Recipe, classes: int) -> None:
    """Checks that RobustBench has a place for a model.

    Raises:
        UserError: it has not this data set, threat model or cut of the images.
    """
    data, norm = recipe.data.name, recipe.threat.norm
    if _CLASSES.get(data) != classes:
        raise UserError(f"--to robustbench: its data sets are {', '.join(_CLASSES)}, and the run's is {data!r}")
    if norm not in _THREATS:
        raise UserError(f"--to robustbench: its threat models are {', '.join(_THREATS)}, and the run's is {norm!r}")
    seen = (getattr(recipe.data, "resize", None), getattr(recipe.data, "image_size", None))
    if data == "imagenet" and seen != (256, 224):
        raise UserError(
            "--to robustbench: it resizes ImageNet to 256 pixels and crops 224, and the run's data.resize and "
            f"data.image_size are {seen[0]} and {seen[1]}"
        )


def write_entry(folder: Path, name: str, model: nn.Module, recipe: Recipe, measured: Evaluation | None) -> None:
    """Writes the weights and the model info into the folders that RobustBench keeps them in.

    Args:
        folder: new.
        name: of the model in the zoo.
        model: of the run.
        recipe: the run's, after `check`.
        measured: the run's evaluation of these weights; None where it has none.
    """
    place = Path(recipe.data.name) / _THREATS[recipe.threat.norm]
    weights, info = folder / "models" / place / f"{name}.pt", folder / "model_info" / place / f"{name}.json"
    for file in (weights, info):
        file.parent.mkdir(parents=True)
    torch.save(model.state_dict(), weights)
    info.write_text(json.dumps(model_info(recipe, measured), indent=2) + "\n", encoding="utf-8")


def model_info(recipe: Recipe, measured: Evaluation | None) -> dict[str, Any]:
    """Returns what RobustBench's model_info says of a model; accuracies are percentages, as text.

    They are there where they are of all test images, and the robust one of AutoAttack's standard version at the
    training radius. Link, authors and venue are for its author to fill in.
    """
    epsilon = format_radius(recipe.threat.epsilon)
    info: dict[str, Any] = {
        "link": "",
        "name": "",
        "authors": "",
        "additional_data": bool(getattr(recipe.model, "pretrained", False)),
        "number_forward_passes": 1,
        "dataset": recipe.data.name,
        "venue": "Unpublished",
        "architecture": _architecture(recipe.model.name),
        "eps": epsilon,
    }
    if measured and measured.sample == "all":
        info["clean_acc"] = _percent(measured.clean)
        standard = measured.autoattack_version == "standard" and measured.autoattack_sample == "all"
        if standard and epsilon in measured.autoattack:
            info |= dict.fromkeys(("reported", "autoattack_acc"), _percent(measured.autoattack[epsilon]))
    return info | {"unreliable": False}


def _percent(accuracy: float | None) -> str | None:
    return None if accuracy is None else f"{100 * accuracy:.2f}"


def _architecture(name: str) -> str:
    """Returns a model's name as RobustBench writes it."""
    name = name.rpartition(":")[2]
    return re.sub("^(preactresnet|resnet|wrn-)(?=[0-9])", lambda found: _ARCHITECTURES[found[1]], name)


SCRIPT = '''"""Measures the model with RobustBench: python load.py FOLDER_OF_THE_DATA [IMAGES]."""

import json
import sys
from collections import OrderedDict
from pathlib import Path

from torch import nn

try:
    import autoattack
except ImportError:  # RobustBench's wheel depends on it by another name
    import pyautoattack.state

    sys.modules["autoattack"], sys.modules["autoattack.state"] = pyautoattack, pyautoattack.state
from network import Model
from robustbench import benchmark
from robustbench.model_zoo import model_dicts
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
from robustbench.utils import load_model

folder = Path(__file__).parent
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
name, data, threat = config["name"], config["data"], {"linf": "Linf", "l2": "L2"}[config["threat"]["norm"]]
# RobustBench puts "model." in front of the names of ImageNet's weights.
build = Model if data != "imagenet" else lambda: nn.Sequential(OrderedDict(model=Model()))
model_dicts[BenchmarkDataset(data)][ThreatModel(threat)][name] = {
    "model": build,
    "gdrive_id": "",  # where it would be downloaded from, were it not here
    "preprocessing": "Res256Crop224",
}
model = load_model(name, model_dir=folder / "models", dataset=data, threat_model=threat)

if __name__ == "__main__":
    images, epsilon = int(sys.argv[2]) if len(sys.argv) > 2 else 10000, config["threat"]["epsilon"]
    benchmark(model, images, data, threat, model_name=name, data_dir=sys.argv[1], eps=epsilon)
'''

USE = """import sys

sys.path.insert(0, "FOLDER")  # this one
from load import model  # by RobustBench's own loader: (B, C, H, W) in [0, 1] to logits"""
