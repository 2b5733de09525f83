"""The l2 attack of Carlini and Wagner, against itself written out image by image, and a distance that is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustcords.data.images import ImageSet
from robustcords.errors import UserError
from robustcords.evaluation.attacks.cw import CarliniWagner
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluate import evaluate
from robustcords.evaluation.results import Evaluation, Measurement
from robustcords.threats.base import ThreatModel

L2 = ThreatModel(norm="l2", epsilon=0.5)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 3)).double().eval()


def by_hand(model: nn.Module, x: Tensor, label: int, steps: int, searches: int, lr: float, c: float) -> float:
    """Section V of the paper for one image, with Adam (Kingma and Ba 2015) and the authors' binary search."""
    low, high, nearest = 0.0, math.inf, math.inf
    origin = torch.atanh((2 * x - 1) * (1 - 1e-6))
    for _ in range(searches):
        change, mean, square = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
        last, hit = math.inf, False
        for step in range(1, steps + 1):
            change.requires_grad_()
            x_adv = (torch.tanh(origin + change) + 1) / 2
            z = model(x_adv[None])[0]
            f = torch.clamp(z[label] - max(z[k] for k in range(3) if k != label), min=0)
            loss = (x_adv - (torch.tanh(origin) + 1) / 2).square().sum() + c * f
            if z.argmax() != label:
                hit, nearest = True, min(nearest, (x_adv - x).square().sum().sqrt().item())
            (gradient,) = torch.autograd.grad(loss, change)
            mean, square = mean + 0.1 * (gradient - mean), square + 0.001 * (gradient**2 - square)
            change = change.detach() - lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            if step % (steps // 10) == 0:
                if loss.item() > 0.9999 * last:
                    break
                last = loss.item()
        low, high = (low, c) if hit else (c, high)
        c = (low + high) / 2 if math.isfinite(high) else 10 * c
    return nearest


def test_distances_are_those_of_the_attack_written_out():
    model, options = network(), {"steps": 30, "searches": 4, "lr": 0.05, "constant": 0.1}
    x = torch.rand((4, 3, 2, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[0] = x[0].round()
    y = model(x).argmax(1)
    expected = [by_hand(model, image, int(label), 30, 4, 0.05, 0.1) for image, label in zip(x, y, strict=True)]
    found = CarliniWagner(L2, **options).distances(model, x, y)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert sum(map(math.isfinite, expected)) >= 2
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


class Edge(nn.Module):
    """Says class 0 of images whose mean is above 0.5, for sure: far from it an attack has a long way to go."""

    seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        mean = 10 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([mean, -mean], dim=1)


def images(count: int = 30) -> ImageSet:
    """Grey images of 4 x 4 pixels around the boundary, every fifth with the wrong label."""
    level = (0.2 + 0.6 * (torch.arange(count) + 0.5) / count)[torch.arange(count) * 7 % count]
    labels = (level < 0.5).long()
    labels[::5] = 1 - labels[::5]
    return ImageSet(level.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous(), labels, ("light", "dark"))


def measured(store: Path | None = None, threat: ThreatModel = L2, **options: object) -> tuple[list[Measurement], Edge]:
    table = {"name": "cw", "steps": 80, "searches": 6, "constant": 0.1, "lr": 0.01, **options}
    config = EvaluationConfig(pgd=None, autoattack=None, attacks=[table])
    model = Edge()
    found = evaluate(model, images(), config, threat, seed=0, store=store)
    assert Evaluation.model_validate(found.to_json()) == found
    return found.attacks, model


def test_accuracies_and_the_median_are_those_of_the_distance_to_a_plane(tmp_path: Path):
    data = images()
    level = data.images[:, 0, 0, 0].double()
    right = (level < 0.5).long() == data.labels
    distance = 4 * (level - 0.5).abs()  # 16 pixels move by the same
    found, model = measured(tmp_path, epsilons=[0.32, 0.56, 0.88])
    # Radii halfway between those of two images.
    for each, radius in zip(found, (0.32, 0.56, 0.88), strict=True):
        assert ((distance / radius - 1).abs() > 0.02).all()
        assert each.accuracy == (right & (distance > radius)).double().mean().item()
        assert each.what == f"CW-80-6 {radius}"
        assert each.extras == {"median_distance": pytest.approx(np.median(distance[right]), rel=0.02)}
    assert model.seen > 0
    # Another radius asks the model nothing more than what it classifies correctly, which is kept too.
    again, model = measured(tmp_path, epsilons=[0.72])
    assert model.seen == 0
    assert found[1].accuracy > again[0].accuracy > found[2].accuracy


def test_a_part_of_the_images_and_a_model_that_is_never_misled(monkeypatch: pytest.MonkeyPatch):
    (part,), _ = measured(limit=10, epsilons=[0.56])
    assert (part.examples, part.same_images.keys()) == (10, {"clean"})
    monkeypatch.setattr(Edge, "forward", lambda self, x: x.flatten(1)[:, :2] * 0 + torch.tensor([1.0, 0.0]))
    (never,), _ = measured(epsilons=[5.0], steps=20)
    assert never.extras == {"median_distance": None}
    assert never.accuracy == (images().labels == 0).double().mean().item()


def test_it_is_for_l2_alone():
    class Half(type(L2)):
        norm: str = ""

        def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
            return super().project(x_adv, x)

    for threat in (ThreatModel(), ThreatModel(norm="l1"), Half(epsilon=0.5)):
        with pytest.raises(UserError, match=r'^evaluation: the attack "cw" requires distances in l2, which'):
            measured(threat=threat)
