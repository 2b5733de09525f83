"""Models of RobustBench, with a stand-in for its package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustcords.data.digits import Digits
from robustcords.errors import UserError
from robustcords.experiments.evaluation import Changes, evaluate
from robustcords.models import source

PACKAGE = {
    "__init__": "from autoattack import AutoAttack\nfrom autoattack.state import EvaluationState",
    "utils": """
from pathlib import Path
import torch
from robustbench.model_zoo import Data, model_dicts
DATASET_CLASSES = {Data("tens"): 10, Data("hundreds"): 100}
def load_model(name, model_dir, dataset, threat_model):
    network = model_dicts[Data(dataset)][Data(threat_model)][name]["model"]()
    network.load_state_dict(torch.load(Path(model_dir) / dataset / threat_model / f"{name}.pt"))
    return network.eval()
""",
    "model_zoo": """
from collections import namedtuple
from torch import nn
Data = namedtuple("Data", "value")
def entry(classes=10, file="x"):
    return {"model": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, classes)), "gdrive_id": file}
model_dicts = {
    Data("tens"): {
        Data("Linf"): {"Own2020": entry(), "Both2020": entry(), "Three2020": entry(file=["x", "y", "z"])},
        Data("L2"): {"Both2020": entry()},
    },
    Data("hundreds"): {Data("Linf"): {"Many2020": entry(100), "Own2020": entry(100)}},
}
""",
}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder, with a package ``robustbench`` of five networks of 8 x 8 pixels; downloads go below it."""
    for name in [name for name in sys.modules if name.partition(".")[0] in {"robustbench", "autoattack"}]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "robustbench").mkdir()
    for name, text in PACKAGE.items():
        (tmp_path / "robustbench" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in {"robustbench", "autoattack"}]:
        del sys.modules[name]


def built(name: str, classes: int = 10, **options: object) -> torch.nn.Module:
    return source(name)(name=name, **options).build(1, 8, classes, [0.3], [0.2], seed=0)


def checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Writes weights as RobustBench publishes them; returns them."""
    state = {"1.weight": torch.randn(10, 64), "1.bias": torch.randn(10)}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return state


def test_weights_are_those_of_the_checkpoint_and_pixels_go_in_as_they_are(stand_in: Path):
    state = checkpoint(stand_in / "mine.pt")
    model = built("robustbench:Own2020", checkpoint=str(stand_in / "mine.pt"))
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(model(x), x.flatten(1) @ state["1.weight"].T + state["1.bias"])


def test_published_weights_are_read_from_where_robustbench_has_put_them(stand_in: Path):
    state = checkpoint(stand_in / "hub/robustbench/tens/L2/Both2020.pt")
    model = built("robustbench:L2/Both2020", pretrained=True)
    assert torch.equal(model.network[1].bias, state["1.bias"])


def test_the_number_of_classes_says_which_data_set(stand_in: Path):
    assert built("robustbench:Own2020", classes=100).network[1].out_features == 100


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("robustbench:Own202", {}, r"unknown model 'robustbench:Own202'; did you mean 'robustbench:Own2020'\?"),
        ("robustbench:Many2020", {}, r"is for hundreds \(100 classes\); these images have 10 classes"),
        ("robustbench:Both2020", {}, "several of this name: robustbench:Linf/Both2020, robustbench:L2/Both2020"),
        ("robustbench:Own2020", {"checkpoint": "none.pt"}, "model.checkpoint none.pt: there is no such file"),
        ("robustbench:Three2020", {"checkpoint": __file__}, "is not published as one file; leave it out"),
        ("robustbench:Own2020", {"checkpoint": __file__}, "'robustbench:Own2020' cannot be built"),
    ],
)
def test_what_cannot_be_had(name: str, options: dict[str, object], message: str, stand_in: Path):
    with pytest.raises(UserError, match=message):
        built(name, **options)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "robustbench", None)
    with pytest.raises(UserError, match=r"models named 'robustbench:\.\.\.' need RobustBench: pip install robustbench"):
        source("robustbench:Own2020")


@pytest.mark.parametrize("form", ["checkpoint", "safetensors", "published"])
def test_evaluation_measures_it_as_it_does_ours(form: str, stand_in: Path):
    state = checkpoint(stand_in / "hub/robustbench/tens/Linf/Own2020.pt")
    weights = {"checkpoint": stand_in / "hub/robustbench/tens/Linf/Own2020.pt", "published": None}.get(form)
    if form == "safetensors":
        weights = stand_in / "own.safetensors"
        around = {"normalize.mean": torch.zeros(1), "normalize.std": torch.ones(1)}
        save_file(around | {f"network.{key}": value for key, value in state.items()}, weights)
    choice = Changes(attacks=["pgd"], epsilons=["0.1"])
    settings = ["evaluation.pgd.steps=2", "evaluation.pgd.restarts=1", "evaluation.limit=0"]
    report = evaluate(None, "digits_mart", weights, settings, choice, None, "robustbench:Own2020")
    found = report.evaluation["weights"]
    x, y = Digits(name="digits").load().test.first(450)
    right = (x.flatten(1) @ state["1.weight"].T + state["1.bias"]).argmax(1) == y
    assert found.clean == pytest.approx(float(right.float().mean()))
    assert (report.recipe.model.name, found.examples, list(found.pgd)) == ("robustbench:Own2020", 450, ["0.1"])
