"""What bfloat16 does to TRADES' attack, and what its first step in float32 mends, and costs.

    python benchmarks/first_step.py [--run runs/my_run --images 512] [--epsilon 0.15]

Attacks images with 1, 2, 3 and 10 steps in float32, in bfloat16 with the first step (and the clean prediction) in
float32, which is what training does, and in bfloat16 from the first step on. Prints a Markdown table: the share of
pixels that the first step moves as float64 does, the divergence ``KL(p || p')`` reached (of the float32 network,
relative to the attack in float32), and milliseconds. Without a run it trains a ResNet-8 of width 16 by TRADES on
scikit-learn's digits for some seconds. Times mean something only on a processor that has instructions for bfloat16,
which the first line says.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from robustcords.attacks.base import CleanLogits
from robustcords.attacks.pgd import PGD
from robustcords.data.digits import Digits
from robustcords.data.images import Images
from robustcords.engine.inference import Inference
from robustcords.engine.precision import autocast, fastest
from robustcords.experiments import build
from robustcords.losses.trades import TRADES, kl_divergence
from robustcords.methods.efforts.batch import attack_batch
from robustcords.models.resnet import ResNet
from robustcords.recipe.recipe import load
from robustcords.rng import Noise
from robustcords.threats.linf import Linf

LOSS = TRADES()
LOWER = partial(autocast, "bf16", torch.device("cpu"))


def trained(threat: Linf) -> tuple[nn.Module, Images]:
    """Returns a network that TRADES has trained for 60 steps, and test images."""
    splits = Digits(name="digits").load()
    model = ResNet(name="resnet8", width=16).build(1, 8, 10, mean=[0.3], std=[0.37], seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    draw = torch.Generator().manual_seed(0)
    for _ in range(60):
        rows = torch.randperm(len(splits.train), generator=draw)[:128]
        x, y = splits.train.batch(rows)
        x_adv = attack_batch(model, x, y, Noise(0, rows), attack=PGD(threat), loss=LOSS).images
        optimizer.zero_grad()
        LOSS.from_logits({"clean": model(x), "adversarial": model(x_adv)}, y).mean().backward()
        optimizer.step()
    return model.eval(), splits.test


def of_run(run: Path) -> tuple[nn.Module, Images]:
    """Returns a run's network with its last weights, and its test images."""
    recipe = load(run / "recipe.toml", of_run=True)
    data = build.data(recipe)
    model = build.model(recipe, data)
    build.load_weights(model, run / "weights" / "last.safetensors")
    return model.eval(), data.test


def attacked(way: str, model: nn.Module, x: Tensor, y: Tensor, attack: PGD) -> Tensor:
    """Returns what one way of running the attack finds."""
    noise = Noise(1, torch.arange(len(x)))
    network = Inference(model, LOWER) if "bfloat16" in way else Inference(model)
    with network.folded():
        if way != "bfloat16 throughout":
            return attack_batch(network, x, y, noise, attack=attack, loss=LOSS).images
        objective = LOSS.objective(y, CleanLogits(network, x, exact=False))
        return attack(network, x, replace(objective, relative_to_clean=False), noise)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run directory with weights; left out, digits")
    parser.add_argument("--images", type=int, default=450)
    parser.add_argument("--epsilon", type=float, default=0.15)
    options = parser.parse_args()
    threat = Linf(epsilon=options.epsilon)
    model, images = of_run(options.run) if options.run else trained(threat)
    x, y = images.batch(torch.arange(min(options.images, len(images))))
    known = fastest(torch.device("cpu")) == "bf16"
    how = "in hardware" if known else "emulated: times say nothing"
    print(f"bfloat16 {how}, {len(x)} images, radius {threat.epsilon}\n")
    exact = copy.deepcopy(model).double()
    print("| steps | precision | first step as in float64 | divergence reached | ms |\n|--:|:--|--:|--:|--:|")
    for steps in (1, 2, 3, 10):
        attack = PGD(threat, steps=steps)
        one = PGD(threat, steps=1, step_size=attack.step_size)
        expected = attacked("float64", exact, x.double(), y, one)
        reference = 0.0
        for way in ("float32", "bfloat16, first step float32", "bfloat16 throughout"):
            begin = time.perf_counter()
            found = attacked(way, model, x, y, attack)
            seconds = time.perf_counter() - begin
            moved = attacked(way, model, x, y, one)
            share = float((moved.double() - expected).abs().lt(1e-5).double().mean())
            with torch.no_grad():
                reached = float(kl_divergence(model(x), model(found)).mean())
            reference = reference or reached
            print(f"| {steps} | {way} | {share:.1%} | {reached / reference:.1%} | {1000 * seconds:.0f} |")


if __name__ == "__main__":
    main()
