"""Which examples a run has trained on: how its selections overlap, and how hard their examples are for another network.

    python benchmarks/chosen_examples.py RUN_DIR --judge RUN_DIR [--examples 1500] [--data-path DIR]

For each selection of the first run, prints its overlap with each one before, and the accuracy and the cross-entropy of
the judge, the last weights of the second run, on some of the chosen training images, as they are and under PGD-10 at
the training radius. The first line is of all training images: what a random subset would be.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from robustcords.attacks.pgd import PGD
from robustcords.data.images import Images
from robustcords.engine.inference import Inference
from robustcords.engine.memory_format import lay_out
from robustcords.engine.modes import evaluation_mode
from robustcords.experiments import build
from robustcords.losses.objective import cross_entropy_of
from robustcords.recipe.recipe import load
from robustcords.rng import Noise, derive, generator
from robustcords.storage.run_directory import RunDirectory
from robustcords.storage.selections import load_selections

BATCH = 250


def judged(model: Inference, attack: PGD, images: Images, rows: Tensor) -> list[str]:
    """Returns accuracy and mean cross-entropy as cells, on images as they are and attacked."""
    logits: tuple[list[Tensor], list[Tensor]] = ([], [])
    for part in rows.split(BATCH):
        x, y = images.batch(part)
        x_adv = attack(model, x, cross_entropy_of(y), Noise(derive(0, "chosen-examples"), part))
        with torch.no_grad():
            logits[0].append(model(x))
            logits[1].append(model(x_adv))
    y = images.labels[rows]
    cells = []
    for each in map(torch.cat, logits):
        cells += [f"{(each.argmax(1) == y).double().mean():.1%}", f"{F.cross_entropy(each, y):.2f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=1500)
    parser.add_argument("--data-path", default="", help="folder of the data, where it is not the recipe's")
    options = parser.parse_args()
    directory = RunDirectory(options.judge, writes=False)
    changes = [f"data.path={json.dumps(options.data_path)}"] if options.data_path else []
    recipe = load(directory.recipe, ["data.validation_fraction=0.0", *changes])  # numbers are of the full training set
    images = build.data(recipe)
    network = build.model(recipe, images)
    build.load_weights(network, directory.weights("last"))
    model = Inference(lay_out(network.eval(), torch.device("cpu"), recipe.train.memory_format))
    attack = PGD(recipe.threat, steps=10, step_size=recipe.threat.epsilon / 4, random_start="uniform")
    selections = load_selections(options.run_dir / "selections")
    chosen = {"all": torch.arange(len(images.train))}
    chosen |= {f"epoch {each.epoch}": torch.from_numpy(each.indices) for each in selections}

    print(f"{platform.machine()}, torch {torch.__version__}; {options.run_dir}, judged by {options.judge}\n")
    print("| chosen in | overlap with those before | clean | cross-entropy | PGD-10 | cross-entropy |")
    print("|:--|:--|--:|--:|--:|--:|")
    draw = generator(0, "chosen-examples")
    before: list[Tensor] = []
    with evaluation_mode(model), model.folded():
        for name, rows in chosen.items():
            some = rows[torch.randperm(len(rows), generator=draw)[: options.examples]].sort().values
            overlaps = ", ".join(f"{torch.isin(rows, other).double().mean():.0%}" for other in before)
            print(f"| {name} | {overlaps} | {' | '.join(judged(model, attack, images.train, some))} |", flush=True)
            before += [rows] if name != "all" else []


if __name__ == "__main__":
    main()
