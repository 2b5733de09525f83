"""What a whole training costs: its passes counted, and the seconds of measured parts put together.

    python benchmarks/schedule_cost.py count
    python benchmarks/schedule_cost.py measure [--data-path DIR] [--network resnet8] [--images 10000] [--weights FILE]

A training is 100 epochs of TRADES-10 on CIFAR-10: 50,000 images, or 30 % of the 45,000 that a validation split leaves,
chosen again every 20 epochs by Adv-GLISTER, and looked at with PGD-10 on the 5,000 others. One unit is the forward of
one image, or the backward to it; the backward to weights is another.

``measure`` times what such a training is made of, each part on a share of the images: epochs on all images, on a subset
and with Bullet-Train, selections with both attacks, and validation; and the textbook's step beside them
(`attack_engine.py`). All take turns, and figures are medians over ``--repeats`` rounds. How many examples Bullet-Train
finds of each kind is that of these epochs; the last table assumes the shares of ``count``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

from attack_engine import Contender, textbook
from epoch_cost import data_options, epoch, images_of, random_subset, recipe_of, trainer_of

from robustcords.attacks.base import Attack
from robustcords.evaluation.evaluate import robust_accuracy
from robustcords.experiments import build
from robustcords.selection.gradient_based_config import FEW
from robustcords.selection.selector import everything
from robustcords.training.callbacks.validation import Validation
from robustcords.training.trainer import Trainer

EPOCHS, SELECT_EVERY, IMAGES, VALIDATION, FRACTION, STEPS = 100, 20, 50_000, 5_000, 0.3, 10
NOMINAL = {"outlier": 0.2, "boundary": 0.2, "robust": 0.6}
CORRECT = 0.8
"""The share of the validation images that are right without an attack, and so are attacked."""


@dataclass(frozen=True)
class Schedule:
    """A way to train.

    Attributes:
        name: for the table.
        examples: trained on in an epoch.
        bullet: whether attack steps are Bullet-Train's.
        selection_steps: attack steps of the selections; None where there are none.
        validate_every: epochs between looks at the validation images; None where there are none.
    """

    name: str
    examples: int
    bullet: bool = False
    selection_steps: int | None = None
    validate_every: int | None = None

    @property
    def selections(self) -> int:
        """How often a subset is chosen."""
        return 0 if self.selection_steps is None else (EPOCHS - 1) // SELECT_EVERY

    @property
    def looks(self) -> int:
        """How often the validation images are attacked."""
        return EPOCHS // self.validate_every if self.validate_every else 0


SUBSET = round(FRACTION * (IMAGES - VALIDATION))
SCHEDULES = (
    Schedule("full data", IMAGES),
    Schedule("Adv-GLISTER", SUBSET, selection_steps=STEPS),
    Schedule("Adv-GLISTER, looked at every 10 epochs", SUBSET, selection_steps=STEPS, validate_every=10),
    Schedule("Adv-GLISTER & Bullet", SUBSET, True, STEPS),
    Schedule("Adv-GLISTER & Bullet, looked at every 10 epochs", SUBSET, True, STEPS, 10),
    Schedule("the same with the defaults", SUBSET, True, FEW, 10),
)


def training_units(kinds: dict[str, float] | None) -> float:
    """Returns the units of one image's training step: attack, and two passes forward and backward.

    Args:
        kinds: shares of Bullet-Train's three kinds; None where every image gets 10 steps.
    """
    update = 2 * 3
    if kinds is None:
        return 1 + 2 * STEPS + update
    steps = 2 * kinds["robust"] + 10 * kinds["boundary"]
    return 1 + 2 * steps + (1 - kinds["outlier"]) + update


def selection_units(steps: int) -> int:
    """Returns the units of one image's share of a selection: the attack, and a forward of each of the loss's views."""
    return 1 + 2 * steps + 2


def validation_units(correct: float) -> float:
    """Returns the units of one validation image: looked at twice, attacked between where it was right."""
    return 1 + correct * (2 * STEPS + 1)


def total(schedule: Schedule, plain: float, bullet: float, selection: dict[int, float], look: float) -> float:
    """Returns what a training costs, from what an image costs in each of its parts."""
    cost = EPOCHS * schedule.examples * (bullet if schedule.bullet else plain)
    if schedule.selection_steps is not None:
        cost += schedule.selections * IMAGES * selection[schedule.selection_steps]
    return cost + schedule.looks * VALIDATION * look


def counted(schedule: Schedule, kinds: dict[str, float], correct: float) -> float:
    selection = {steps: float(selection_units(steps)) for steps in (FEW, STEPS)}
    return total(schedule, training_units(None), training_units(kinds), selection, validation_units(correct))


def count(_: argparse.Namespace) -> None:
    print("| training | units an image and step | selections | looks | million units | full data / this |")
    print("|:--|--:|--:|--:|--:|--:|")
    whole = counted(SCHEDULES[0], NOMINAL, CORRECT)
    for each in SCHEDULES:
        units = counted(each, NOMINAL, CORRECT)
        step = training_units(NOMINAL if each.bullet else None)
        cells = [each.name, f"{step:.1f}", each.selections, each.looks, f"{units / 1e6:.1f}", f"{whole / units:.2f}"]
        print(f"| {' | '.join(map(str, cells))} |")


def seconds_of(trainer: Trainer, size: int, number: int) -> float:
    """Returns the seconds per image of an epoch, on everything or on a random subset."""
    count = len(trainer.train)
    subset = everything(count) if size == count else random_subset(count, size / count)
    return epoch(trainer, subset, number)[0]["total"] / size


def selection_seconds(trainer: Trainer, attack_steps: int, number: int) -> float:
    """Returns the seconds per image of a selection."""
    selector = trainer.selector
    assert selector is not None
    selector.config = selector.config.model_copy(update={"attack_steps": attack_steps})
    if attack_steps == FEW:
        selector.config = selector.config.model_copy(update={"attack_steps": None})
    begin = time.perf_counter()
    selector.select(number, trainer.inference)
    return (time.perf_counter() - begin) / (len(trainer.train) + len(selector.validation or ()))


def look_seconds(trainer: Trainer, attack: Attack) -> tuple[float, float]:
    """Returns the seconds per image of a look at the validation images, and the share that is right unattacked."""
    images = next(callback.images for callback in trainer.callbacks if isinstance(callback, Validation))
    begin = time.perf_counter()
    correct, _ = robust_accuracy(trainer.model, images, attack, seed=0, autocast=trainer.accelerator.autocast)
    return (time.perf_counter() - begin) / len(images), correct


def measure(options: argparse.Namespace) -> None:
    changes = [f"model.name={options.network}", f"train.epochs={options.warm_up + options.repeats + 1}"]
    recipes = {
        bullet: recipe_of("cifar10_trades_glister", options, [*changes, f"bullet={str(bullet).lower()}"])
        for bullet in (False, True)
    }
    images = images_of(recipes[False], options.images)
    trainers = {bullet: trainer_of(recipe, images, options.weights) for bullet, recipe in recipes.items()}
    plain, bullet = trainers[False], trainers[True]
    size = len(images.train)
    share = round(FRACTION * size)
    attack = build.attack(recipes[False])
    script = Contender(textbook, options.network, "trades", recipes[False].train.batch_size, options.workers)
    for number in range(options.warm_up):
        for each in trainers.values():
            epoch(each, everything(size), number)
    script.seconds()
    rounds: list[dict[str, float]] = []
    found: list[dict[str, float]] = []
    for number in range(options.warm_up, options.warm_up + options.repeats + 1):
        look, correct = look_seconds(bullet, attack)
        parts = {
            "full": seconds_of(plain, size, number),
            "subset": seconds_of(plain, share, number),
            "bullet": seconds_of(bullet, size, number),
            **{f"selection {steps}": selection_seconds(bullet, steps, number) for steps in (FEW, STEPS)},
            "look": look,
            "textbook": script.seconds() / recipes[False].train.batch_size,
        }
        kinds = {kind: found / size for kind, found in bullet.progress.counts.items()}
        if number > options.warm_up:
            rounds.append(parts)
            found.append({**kinds, "correct": correct})
    script.end()
    report(
        {name: statistics.median(each[name] for each in rounds) for name in rounds[0]},
        {name: statistics.median(each[name] for each in found) for name in found[0]},
    )


def report(parts: dict[str, float], shares: dict[str, float]) -> None:
    """Prints the measured parts, and each training put together from them beside its count."""
    print(", ".join(f"{value:.1%} {name}" for name, value in shares.items()) + "\n")
    units = {
        **dict.fromkeys(("full", "subset"), training_units(None)),
        "bullet": training_units(shares),
        **{f"selection {steps}": float(selection_units(steps)) for steps in (FEW, STEPS)},
        "look": validation_units(shares["correct"]),
    }
    print("| part | units | µs an image | µs a unit |\n|:--|--:|--:|--:|")
    for name, counted_units in units.items():
        taken = parts[name] * 1e6
        print(f"| {name} | {counted_units:.1f} | {taken:.0f} | {taken / counted_units:.1f} |")
    print(f"| textbook | | {parts['textbook'] * 1e6:.0f} | |\n")
    compare("These shares", parts, shares)
    nominal = {**NOMINAL, "correct": CORRECT}
    bullet, look = (parts[name] / units[name] for name in ("bullet", "look"))
    assumed = {"bullet": bullet * training_units(NOMINAL), "look": look * validation_units(CORRECT)}
    compare("20 % outlier, 20 % boundary, 60 % robust, at these costs of a unit", {**parts, **assumed}, nominal)


def compare(title: str, parts: dict[str, float], shares: dict[str, float]) -> None:
    """Prints what each training takes of the seconds on full data, beside its count."""
    selection = {steps: parts[f"selection {steps}"] for steps in (FEW, STEPS)}
    whole = total(SCHEDULES[0], parts["full"], parts["bullet"], selection, parts["look"])
    print(f"{title}:\n\n| training | count allows | measured | share | against the textbook |\n|:--|--:|--:|--:|--:|")
    for each in SCHEDULES:
        plain = parts["full" if each.examples == IMAGES else "subset"]
        cost = total(each, plain, parts["bullet"], selection, parts["look"])
        allowed = counted(SCHEDULES[0], shares, shares["correct"]) / counted(each, shares, shares["correct"])
        script = EPOCHS * IMAGES * parts["textbook"] / cost
        print(f"| {each.name} | {allowed:.2f} | {whole / cost:.2f} | {whole / cost / allowed:.1%} | {script:.1f} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("count", "measure"))
    data_options(parser)
    parser.add_argument("--network", default="resnet8")
    parser.add_argument("--warm-up", type=int, default=1, help="epochs before the first measured one")
    parser.add_argument("--workers", type=int, default=2, help="of the textbook's loader")
    options = parser.parse_args()
    {"count": count, "measure": measure}[options.what](options)


if __name__ == "__main__":
    main()
