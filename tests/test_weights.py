"""docs/weights.md: weights in a script that never imports robustcords, and weights from elsewhere in ours."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import docs_pages as pages
from torch import nn

from robustcords import models
from robustcords.attacks.pgd import PGD
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluate import evaluate, robust_accuracy
from robustcords.experiments import build
from robustcords.recipe import recipe
from robustcords.threats.base import ThreatModel

PAGE = pages.ROOT / "docs" / "weights.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pages.write_files(PAGE, tmp_path)
    return tmp_path


def trained(name: str) -> nn.Module:
    """Returns a model whose normalisation and BatchNorm statistics are not the initial ones."""
    model = models.source(name)(name=name).build(3, 32, 10, [0.49, 0.48, 0.45], [0.25, 0.24, 0.26], seed=1)
    with torch.no_grad():
        model(torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0)))
    return model.eval()


def test_a_plain_script_gives_the_same_logits_bit_for_bit(folder: Path, hide_package: Callable[[], None]):
    x = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    expected = {}
    for name in ("resnet8", "resnet18"):
        model = trained(name)
        save_file(model.state_dict(), folder / f"{name}.safetensors")
        with torch.no_grad():
            expected[name] = model(x)
    hide_package()
    plain = runpy.run_path(str(folder / "plain_resnet.py"))
    with torch.no_grad():
        found = {name: plain[name](folder / f"{name}.safetensors")(x) for name in expected}
    assert all(torch.equal(found[name], logits) for name, logits in expected.items())
    assert not torch.equal(found["resnet8"], found["resnet18"])


@pytest.mark.parametrize("name", ["resnet8", "resnet10", "resnet14", "resnet18", "resnet20", "resnet32", "resnet34"])
def test_the_plain_module_has_every_networks_names_and_shapes(name: str, folder: Path):
    plain = runpy.run_path(str(folder / "plain_resnet.py"))["ResNet"]
    source = models.source(name)(name=name)
    with torch.device("meta"):
        theirs = plain(3, 10, source.config.width, source.config.depths).state_dict()
        ours = source.network(3, 32, 10).state_dict()
    ours = {f"network.{key}": value.shape for key, value in ours.items()}
    assert {key: value.shape for key, value in theirs.items() if not key.startswith("normalize.")} == ours
    assert theirs.keys() - ours.keys() == {"normalize.mean", "normalize.std"}


@pytest.fixture
def undefended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns AutoAttack's undefended CIFAR-10 ResNet-18 as docs/weights.md converts it."""
    monkeypatch.chdir(folder)
    runpy.run_path("convert.py")
    return folder / "undefended.safetensors"


def resnet18(weights: Path) -> nn.Module:
    model = models.source("resnet18")(name="resnet18").build(3, 32, 10, [0.5] * 3, [0.5] * 3, seed=0).eval()
    build.load_weights(model, weights)
    return model


def test_autoattacks_network_computes_the_same_under_our_names(undefended: Path):
    examples = Path(find_spec("pyautoattack").submodule_search_locations[0]) / "examples"
    theirs = runpy.run_path(str(examples / "resnet.py"))["ResNet18"]().eval()
    theirs.load_state_dict(torch.load(examples / "model_test.pt", weights_only=True, map_location="cpu"))
    x = torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, reference = resnet18(undefended)(x), theirs(x)
    # Their average pooling adds up in another order than a mean.
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5)
    assert reference.abs().max() > 1


@pytest.mark.slow
@pytest.mark.skipif(
    "ROBUSTCORDS_CIFAR10" not in os.environ, reason="ROBUSTCORDS_CIFAR10 must name a folder with CIFAR-10 as parquet"
)
def test_autoattacks_undefended_network_is_accurate_and_not_robust(undefended: Path):
    chosen = recipe.load("cifar10_trades", [f"data.path={os.environ['ROBUSTCORDS_CIFAR10']}"])
    test = build.component("data", chosen.data).load().test
    model = resnet18(undefended)
    settings = EvaluationConfig(pgd=None, autoattack=None, limit=1000)
    clean = evaluate(model, test, settings, ThreatModel(), seed=0).clean
    assert clean is not None
    assert 0.93 < clean < 0.97
    attack = PGD(ThreatModel(epsilon=8 / 255), steps=10, step_size=2 / 255, random_start="uniform")
    _, robust = robust_accuracy(model, test.subset(torch.arange(100)), attack, seed=0)
    assert robust <= 0.01
