from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.brief import shorten
from support.several import together
from torch import Tensor, nn

from robustcords.attacks.pgd import PGD
from robustcords.data.images import ImageSet
from robustcords.errors import UserError
from robustcords.evaluation.config import EvaluationConfig
from robustcords.evaluation.evaluate import evaluate, robust_accuracy
from robustcords.evaluation.ledger import chunks
from robustcords.rng import Noise, derive
from robustcords.runtime import collectives
from robustcords.threats.base import ThreatModel

pytestmark = pytest.mark.usefixtures("brief")

LINF, L2 = ThreatModel(), ThreatModel(norm="l2")
SEED = 11


class Counting(nn.Module):
    """A small network in float64, so that the size of a batch changes no prediction. Counts its forward passes.

    Its images have 4 by 4 pixels: under l2 AutoAttack leaves Square out there, whose 5,000 queries are the slow part.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.calls = 0
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)]
        self.net = nn.Sequential(*layers).double()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.net(x.double())
        return logits


def image_set(count: int, wrong: float = 0.2) -> ImageSet:
    draw = torch.Generator().manual_seed(3)
    images = torch.randint(256, (count, 1, 4, 4), generator=draw, dtype=torch.uint8)
    with torch.no_grad():
        labels = Counting().eval()(images.float() / 255).argmax(1)
    other = torch.rand(count, generator=draw) < wrong
    return ImageSet(images, torch.where(other, (labels + 1) % 4, labels), ("a", "b", "c", "d"))


def config(**tables: Any) -> EvaluationConfig:
    return EvaluationConfig(**{"pgd": False, "autoattack": False, **tables})


def pgd_table(**options: Any) -> dict[str, Any]:
    return {"steps": 4, "restarts": 3, "step_size": 0.01, "epsilons": [0.03], **options}


def plain_loop(model: nn.Module, data: ImageSet, epsilon: float, steps: int, step_size: float, restarts: int) -> Tensor:
    """Every restart on every image, in one batch, whatever happened to it before."""
    model.eval()
    x, y = data.batch(torch.arange(len(data)))
    robust = model(x).argmax(1) == y
    for restart in range(restarts):
        uniform = Noise(derive(SEED, "evaluation"), torch.arange(len(data)), restart).uniform(x.shape[1:])
        x_adv = (x + (2 * uniform - 1) * epsilon).clamp(0, 1)
        for _ in range(steps):
            x_adv.requires_grad_()
            loss = nn.functional.cross_entropy(model(x_adv), y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + step_size * gradient.sign()
            x_adv = (x + (x_adv - x).clamp(-epsilon, epsilon)).clamp(0, 1)
        robust &= model(x_adv).argmax(1) == y
    return robust


def test_dropping_broken_examples_gives_the_plain_loops_result():
    data = image_set(300)
    model = Counting()
    expected = {}
    for restarts in (1, 6):
        expected[restarts] = plain_loop(model, data, 0.05, 2, 0.025, restarts).double().mean().item()
    assert 0 < expected[6] < expected[1] < 0.8, "restarts make no difference here"
    for restarts, accuracy in expected.items():
        table = pgd_table(steps=2, step_size=0.025, restarts=restarts, epsilons=[0.05])
        report = evaluate(model, data, config(pgd=table), LINF, seed=SEED)
        assert report.pgd == {"0.05": accuracy}
        assert report.pgd_attack == f"PGD-2-{restarts}"


def test_less_is_computed_once_examples_are_broken():
    model, data = Counting(), image_set(1)
    table = pgd_table(steps=5, step_size=0.5, restarts=50, epsilons=[1.0])
    assert evaluate(model, data, config(pgd=table), LINF, seed=SEED).pgd == {"1.0": 0.0}
    # One clean pass, and a few restarts of five steps and a look at the result; all 50 would be 301.
    assert model.calls < 100


def test_a_tiny_radius_is_clean_accuracy():
    report = evaluate(Counting(), image_set(200), config(pgd=pgd_table(epsilons=[1e-9])), LINF, seed=SEED)
    assert report.pgd == {"1e-09": report.clean}
    assert 0.7 < report.clean < 0.9
    assert report.examples == 200


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_model_is_as_robust_as_its_margins(norm: str):
    draw = torch.Generator().manual_seed(5)
    x = 0.3 + 0.4 * torch.rand((150, 1, 4, 4), generator=draw)
    weight = torch.randn((1, 16), generator=draw)
    score = (x.flatten(1) @ weight.T).squeeze(1)
    score -= (shift := score.mean())
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.cat([weight, torch.zeros(1, 16)]))
        model[1].bias.copy_(torch.tensor([-shift, 0.0]))
    data = ImageSet(x, (score < 0).long(), ("positive", "negative"))
    dual = weight.abs().sum() if norm == "linf" else weight.norm()
    distance = score.abs() / dual
    epsilon = float(distance.median()) + 1e-5
    assert epsilon < 0.29, "the box would matter"
    table = pgd_table(steps=30, step_size=epsilon / 5, epsilons=[epsilon])
    report = evaluate(model, data, config(pgd=table), ThreatModel(norm=norm), seed=SEED)
    assert report.clean == 1.0
    (accuracy,) = report.pgd.values()
    assert accuracy == (distance > epsilon).double().mean().item()


def test_goes_on_where_it_was_stopped(tmp_path: Path):
    data, settings = image_set(300), config(pgd=pgd_table())
    whole = Counting()
    expected = evaluate(whole, data, settings, LINF, seed=SEED)

    def stop(what: str, done: int, total: int) -> None:
        assert total == 300
        if what.startswith("PGD") and done == 256:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(Counting(), data, settings, LINF, seed=SEED, store=tmp_path / "store", on_progress=stop)
    rest = Counting()
    assert evaluate(rest, data, settings, LINF, seed=SEED, store=tmp_path / "store") == expected
    assert 0 < rest.calls < whole.calls / 2
    nothing = Counting()
    assert evaluate(nothing, data, settings, LINF, seed=SEED, store=tmp_path / "store") == expected
    assert nothing.calls == 0


def test_autoattack_goes_on_where_it_was_stopped(tmp_path: Path):
    data = image_set(150)  # two chunks
    settings = config(autoattack={"epsilons": [0.6]})
    whole = Counting()
    expected = evaluate(whole, data, settings, LINF, seed=SEED)

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("AutoAttack") and 0 < done < total:
            raise KeyboardInterrupt

    first = Counting()
    with pytest.raises(KeyboardInterrupt):
        evaluate(first, data, settings, LINF, seed=SEED, store=tmp_path, on_progress=stop)
    rest = Counting()
    assert evaluate(rest, data, settings, LINF, seed=SEED, store=tmp_path) == expected
    assert 0 < rest.calls < whole.calls
    assert first.calls + rest.calls == whole.calls + 1, "but for the pass that counts the classes"


@pytest.mark.parametrize(
    "change", ["weights", "images", "labels", "seed", "norm", "steps", "epsilon", "limit", "broken"]
)
def test_a_store_of_something_else_is_not_used(tmp_path: Path, change: str):
    data, settings, threat, seed, model = image_set(40), config(pgd=pgd_table()), LINF, SEED, Counting()
    evaluate(model, data, settings, threat, seed=seed, store=tmp_path)
    if change == "weights":
        model = Counting(seed=1)
    elif change == "images":
        data.images[0, 0, 0, 0] ^= 1
    elif change == "labels":
        data.labels[0] = (data.labels[0] + 1) % 4
    elif change in {"seed", "norm"}:
        threat, seed = (L2, seed) if change == "norm" else (threat, seed + 1)
    elif change == "steps":
        settings = config(pgd=pgd_table(steps=5))
    elif change == "epsilon":
        settings = config(pgd=pgd_table(epsilons=[0.04]))
    elif change == "limit":
        settings = config(pgd=pgd_table(), limit=39)
    else:
        for path in tmp_path.iterdir():
            path.write_text(path.read_text()[:-20])
    model.calls = 0
    resumed = evaluate(model, data, settings, threat, seed=seed, store=tmp_path)
    assert model.calls > 10
    assert resumed == evaluate(model, data, settings, threat, seed=seed)


def test_limits_and_autoattack(tmp_path: Path):
    data, model = image_set(30), Counting()
    settings = config(autoattack={"epsilons": [0.15, 4.0], "limit": 8}, limit=20)
    model.train()
    report = evaluate(model, data, settings, L2, seed=SEED, store=tmp_path)
    assert all(module.training for module in model.modules())
    x, y = data.batch(torch.arange(20))
    correct = model.eval()(x).argmax(1) == y
    assert report.examples == 20
    assert report.clean == correct.double().mean().item()
    assert report.pgd == {}
    assert report.autoattack_examples == 8
    assert report.autoattack_version == "standard (without square, 3 target classes)"
    assert report.autoattack_attacks == ["apgd-ce", "apgd-t", "fab-t"]
    assert report.autoattack["4.0"] == 0.0
    assert 0 < report.autoattack["0.15"] < correct[:8].double().mean().item()
    after = list(report.autoattack_after["0.15"].values())
    assert after == sorted(after, reverse=True)
    assert after[-1] == report.autoattack["0.15"]
    model.calls = 0
    assert evaluate(model, data, settings, L2, seed=SEED, store=tmp_path) == report
    assert model.calls == 1, "one pass counts the classes, the rest is in the store"


def test_no_images():
    with pytest.raises(UserError, match="no images"):
        evaluate(Counting(), image_set(4).subset(torch.arange(0)), config(), LINF, seed=0)
    with pytest.raises(UserError, match="no images"):
        robust_accuracy(Counting(), image_set(4).subset(torch.arange(0)), PGD(ThreatModel()), seed=0)


def test_logits_that_are_no_numbers_are_wrong():
    model = Counting()
    nn.init.constant_(model.net[5].bias, float("nan"))
    report = evaluate(model, image_set(10), config(pgd=pgd_table()), LINF, seed=0)
    assert (report.clean, report.pgd) == (0.0, {"0.03": 0.0})


def test_robust_accuracy_counts_what_withstands_the_attack():
    data, model, attack = image_set(100), Counting(), PGD(ThreatModel(epsilon=0.03), steps=4, step_size=0.01)
    model.train()
    clean, robust = robust_accuracy(model, data, attack, seed=2, batch_size=33)
    assert model.training
    report = evaluate(model, data, config(), LINF, seed=2)
    assert clean == report.clean
    assert 0.1 < robust < clean - 0.1
    again = robust_accuracy(model, data, attack, seed=2, batch_size=100)
    assert again == (clean, robust)
    harmless = PGD(ThreatModel(epsilon=0.0))
    assert robust_accuracy(model, data, harmless, seed=2) == (clean, clean)


def test_robust_accuracy_runs_in_the_precision_it_is_given():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    seen = []
    model[1].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    attack = PGD(ThreatModel(epsilon=0.03), steps=1)
    robust_accuracy(model, image_set(8), attack, seed=0, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    assert set(seen) == {torch.bfloat16}
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        evaluate(model, image_set(8), config(pgd=pgd_table()), LINF, seed=0)
    assert set(seen) == {torch.float32}


def test_chunks_cover_every_example_once():
    for count in (1, 127, 128, 129, 1000, 10_000, 50_000):
        rows = chunks(count)
        assert torch.cat(rows).tolist() == list(range(count))
        assert all(len(each) <= 1024 for each in rows)
    assert len(chunks(10_000)) == 16


def both_measures(folder: Path) -> list[Any]:
    settings = config(pgd=pgd_table(), autoattack={"epsilons": [0.1], "limit": 3})
    data = image_set(300)
    steps: list[tuple[str, int, int]] = []
    report = evaluate(
        Counting(),
        data,
        settings,
        L2,
        seed=SEED,
        store=folder / "store",
        on_progress=lambda *step: steps.append(step),
    )
    validation = robust_accuracy(Counting(), data, PGD(ThreatModel(), steps=3), seed=1, batch_size=64)
    return [report.to_json(), list(validation), collectives.world_size(), steps[-1]]


def worker(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    shorten(pytest.MonkeyPatch())
    file = f"file://{folder / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=file, rank=rank, world_size=world)
    torch.save(both_measures(folder), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_several_processes_give_one_processs_numbers(tmp_path: Path, world: int):
    (tmp_path / "alone").mkdir()
    alone = both_measures(tmp_path / "alone")
    together(worker, world, world, tmp_path)
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    assert all(result == results[0] for result in results)
    assert results[0][:2] == alone[:2]
    assert (results[0][2], alone[2]) == (world, 1)
    assert results[0][3] == alone[3] == ("AutoAttack 0.1", 3, 3)
    assert len(list((tmp_path / "store").iterdir())) == 3
