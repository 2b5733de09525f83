"""Evaluation runs a network with its BatchNorms folded: the same images withstand as with the network as it is."""

import json

import pytest
import torch
from torch import nn

from robustcords.data.images import ImageSet
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluate import evaluate
from robustcords.models.base import Classifier, Normalize
from robustcords.models.resnet import ResNetNetwork
from robustcords.threats.base import ThreatModel

COUNT, EPSILON = 96, "2/255"
PGD_TABLE = {"steps": 4, "restarts": 2, "step_size": "1/255", "epsilons": [EPSILON]}


class AsItIs(nn.Module):
    """Code that is not known, and is not folded."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)


@pytest.fixture
def network():
    """In float64, where rounding changes no prediction; with statistics and scales as training leaves them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Classifier(Normalize([0.5] * 3, [0.25] * 3), ResNetNetwork(3, 10, 4, (1, 1))).double().eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.2, 0.2)
    return network


@pytest.fixture
def data(network):
    images = torch.rand((COUNT, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        network.network.fc.bias -= network(images).mean(0)  # else nearly all images are of one class
        labels = network(images).argmax(1)
    labels[::9] = (labels[::9] + 1) % 10
    return ImageSet(images, labels, tuple("abcdefghij"))


def outcomes(model, data, folder):
    """Returns the report, and for each measurement what became of every image."""
    report = evaluate(
        model, data, EvaluationConfig(pgd=PGD_TABLE, autoattack=False), ThreatModel(), seed=3, store=folder
    )
    kept = [json.loads(path.read_text()) for path in folder.iterdir()]
    return report, {each["fingerprint"]["what"]: each["outcomes"] for each in kept}


def test_the_same_images_withstand_and_no_batch_norm_runs(network, data, tmp_path, monkeypatch):
    report, plain = outcomes(AsItIs(network), data, tmp_path / "plain")
    assert report.clean > report.pgd[EPSILON] > 0, "the attack should break some"

    def refuse(*_):
        raise AssertionError("a BatchNorm ran")

    monkeypatch.setattr(nn.BatchNorm2d, "forward", refuse)
    assert outcomes(network, data, tmp_path / "folded") == (report, plain)
