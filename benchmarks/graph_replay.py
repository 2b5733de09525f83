"""What recorded passes (CUDA graphs) take off attacks, training steps and evaluations. Needs a GPU.

    python benchmarks/graph_replay.py [--repeats 5] [--steps 30]

Both ways take turns in one process on the same random images; figures are medians over ``--repeats`` rounds, in ms,
after one to warm up. Training is in bf16 on batches of 128, evaluation in float32 on 256 images. "Busy" is
the kernels' own time as torch's profiler has it, of the way without recordings: what no way of asking gets below.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from attack_engine import SIZES, network
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from robustcords.attacks.pgd import PGD
from robustcords.data.augmentations.crop_flip import CropFlip
from robustcords.data.images import ImageSet
from robustcords.engine.inference import Inference
from robustcords.engine.modes import evaluation_mode
from robustcords.engine.precision import exact_float32
from robustcords.evaluation.attacks import autoattack
from robustcords.losses.objective import Objective
from robustcords.losses.trades import TRADES
from robustcords.methods.adversarial import AdversarialTraining
from robustcords.methods.efforts.base import Effort
from robustcords.methods.efforts.bullet import Bullet
from robustcords.methods.efforts.uniform import Uniform
from robustcords.rng import Noise, generator
from robustcords.selection.selector import everything
from robustcords.threats.linf import Linf
from robustcords.training.config import TrainConfig
from robustcords.training.trainer import Trainer

THREAT = Linf(epsilon=8 / 255)


def training(name: str, replay: bool, steps: int, effort: Effort, *, updates: bool = False) -> Callable[[], object]:
    """Returns what takes some training steps of TRADES with PGD-10, in which updates may be recorded too."""
    count = steps * 128
    source = generator(0, "images")
    images = torch.randint(256, (count, 3, 32, 32), generator=source, dtype=torch.uint8)
    data = ImageSet(images, torch.randint(10, (count,), generator=source), tuple(map(str, range(10))))
    settings = TrainConfig(epochs=1000, batch_size=128, cuda_graphs="all" if replay and updates else replay)
    model = network(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    method = AdversarialTraining(TRADES(), PGD(THREAT, steps=10), effort)
    trainer = Trainer(model, method, data, optimizer, settings, augmentation=CropFlip(crop=4, flip=True))

    def run() -> None:
        trainer.progress.step = 0
        trainer.train_epoch(0, everything(count))

    return run


def attack(name: str, replay: bool) -> Callable[[], object]:
    """Returns a PGD-10 as in training."""
    model, x, y = frozen(name, 128)
    inference = Inference(model, lambda: torch.autocast("cuda", dtype=torch.bfloat16), replay=replay)
    objective = Objective(lambda logits: cross_entropy(logits, y, reduction="none"))

    def run() -> None:
        with inference.folded():
            PGD(THREAT, steps=10)(inference, x, objective, Noise(0, torch.arange(128, device="cuda")))

    return run


def evaluation(name: str, replay: bool, square: bool) -> Callable[[], object]:
    """Returns a PGD-50, or 300 queries of Square, as in evaluation."""
    model, x, y = frozen(name, 256)
    inference = Inference(model, replay=replay).eval()
    objective = Objective(lambda logits: cross_entropy(logits, y, reduction="none"))

    def run() -> None:
        with evaluation_mode(inference), exact_float32(x.device), inference.folded():
            if square:
                autoattack.square(inference, x, y, norm="Linf", epsilon=1e-4, queries=300, seed=0)
            else:
                PGD(THREAT, steps=50)(inference, x, objective, Noise(0, torch.arange(256, device="cuda")))

    return run


def frozen(name: str, count: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """Returns a network in eval mode, images, and what it takes them for."""
    model = network(name).cuda().to(memory_format=torch.channels_last)
    x = torch.rand(count, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        model(x)
        y = model.eval()(x).argmax(dim=1)
    return model, x, y


def seconds(action: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    begin = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def busy(action: Callable[[], object]) -> float:
    """Returns the seconds that the GPU computes."""
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        action()
        torch.cuda.synchronize()
    return sum(float(each.self_device_time_total) for each in recorded.key_averages()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="training steps a round")
    options = parser.parse_args()
    steps = options.steps
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| network | work | eager | recorded | eager / recorded | busy |\n|:--|:--|--:|--:|--:|--:|")
    works: dict[str, tuple[int, Callable[[str, bool], Callable[[], object]]]] = {
        "attack, PGD-10": (1, attack),
        "training step": (steps, lambda name, replay: training(name, replay, steps, Uniform())),
        "the same, updates too": (
            steps,
            lambda name, replay: training(name, replay, steps, Uniform(), updates=True),
        ),
        "the same, Bullet": (steps, lambda name, replay: training(name, replay, steps, Bullet(), updates=True)),
        "evaluation, PGD-50": (1, lambda name, replay: evaluation(name, replay, square=False)),
        "evaluation, Square": (1, lambda name, replay: evaluation(name, replay, square=True)),
    }
    for name in SIZES:
        for work, (count, make) in works.items():
            ways = {replay: make(name, replay) for replay in (False, True)}
            rounds = [{replay: seconds(way) for replay, way in ways.items()} for _ in range(options.repeats + 1)][1:]
            eager, recorded = (1000 * statistics.median(each[way] for each in rounds) / count for way in (False, True))
            ratio = statistics.median(each[False] / each[True] for each in rounds)
            floor = 1000 * busy(ways[False]) / count
            print(f"| {name} | {work} | {eager:.1f} | {recorded:.1f} | {ratio:.2f} | {floor:.1f} |", flush=True)


if __name__ == "__main__":
    main()
