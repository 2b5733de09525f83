"""Which classifiers of torchvision and timm train at which size of image, and why the others are refused.

    python benchmarks/library_models.py --answers runs/library_models.jsonl --output docs/models.md

Each is built for ten classes and trained for one adversarial step on two images. Of torchvision every classifier is
tried; of timm, which has more than a thousand, the smallest of each of its modules, or with ``--all`` each. Models of
more than ``--most`` million parameters are listed and not tried. Answers are kept in a file, one a line, so that a
second call continues where the first was stopped. The page is written from those that are there.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from robustcords.attacks.pgd import PGD
from robustcords.data.images import ImageSet
from robustcords.errors import RunError, UserError
from robustcords.losses.sat import SAT
from robustcords.methods.adversarial import AdversarialTraining
from robustcords.models import source
from robustcords.models.external import ExternalModel, TimmModel, TorchvisionModel
from robustcords.threats.linf import Linf
from robustcords.training.config import TrainConfig
from robustcords.training.trainer import Trainer

CLASSES = tuple("abcdefghij")
SIZES = (32, 64, 224)
TRAINS, NOT_TRIED = "trains", "not tried"
WHICH = {"torchvision": "every classifier of torchvision", "timm": "the smallest of each module of timm"}
LIBRARIES: dict[str, type[ExternalModel]] = {"torchvision": TorchvisionModel, "timm": TimmModel}

PAGE = """# Models of {libraries}

`model.name` takes any classifier of torchvision (`"torchvision:NAME"`) and of timm (`"timm:NAME"`). This page lists
which of them train on images of 32, 64 and 224 pixels: {which}.

Each model was built without published weights for ten classes and three channels, and trained for one adversarial step
on a CPU in float32. A refusal is the line with which `robustcords run` ends before training. Models of more than
{most:g} million parameters were not tried, for lack of memory, and others marked as not tried for lack of time.

```sh
python benchmarks/library_models.py --answers runs/library_models.jsonl --output docs/models.md{options}
```

With {versions}.
"""

TABLE = """
| model | {columns} |
| --- | {rules} |
{rows}
"""


def answer(name: str, size: int) -> str:
    """Returns `TRAINS`, or the line with which a model is refused on images of ``size`` by ``size``.

    Args:
        name: as in a recipe, such as ``"torchvision:resnet18"``.
        size: in pixels.
    """
    try:
        try:
            train(name, size, 2)
        except RunError:  # BatchNorm of two values that are almost equal: gradients that are not finite
            train(name, size, 8)
    except UserError as error:
        return str(error)
    return TRAINS


def train(name: str, size: int, count: int) -> None:
    """Trains a model for one step.

    Args:
        name: as in a recipe.
        size: of the images in pixels.
        count: of images.

    Raises:
        UserError: it is refused.
        RunError: a gradient is not finite.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    images = ImageSet(pixels, torch.arange(count), CLASSES)
    model = source(name)(name=name).build(3, size, len(CLASSES), [0.5] * 3, [0.25] * 3, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    method = AdversarialTraining(SAT(), PGD(Linf(epsilon=8 / 255), steps=1))
    Trainer(model, method, images, optimizer, TrainConfig(steps=1, batch_size=count, precision="fp32")).fit()


def millions(library: type[ExternalModel], name: str) -> float:
    """Returns how many million parameters a model has with its own number of classes."""
    if library is TorchvisionModel:
        return float(library.library().models.get_model_weights(name).DEFAULT.meta["num_params"]) / 1e6
    try:
        with torch.device("meta"):  # takes no memory
            network = library.library().create_model(name)
    except NotImplementedError:  # reads a number off a tensor while it is built
        network = library.library().create_model(name)
    return float(sum(value.numel() for value in network.parameters())) / 1e6


def representative(library: type[ExternalModel], names: list[str]) -> Iterator[str]:
    """Yields every name of torchvision, and of timm the first of each module."""
    modules = set()
    for name in names:
        module = library.library().models.model_entrypoint(name).__module__ if library is TimmModel else name
        if module not in modules:
            yield name
        modules.add(module)


class Answers:
    """What has been found out, kept in a file.

    Args:
        path: JSON lines of a model, a size in pixels or ``"millions"``, and the answer.
        minutes: after which nothing more is tried.
    """

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.end = path, time.monotonic() + 60 * minutes
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.known: dict[tuple[str, Any], Any] = {(name, what): found for name, what, found in map(json.loads, lines)}

    def get(self, name: str, what: int | str, ask: Callable[[], Any]) -> Any:
        """Returns what is known, or else asks and keeps the answer; `NOT_TRIED` when the time is up."""
        if (name, what) not in self.known and time.monotonic() > self.end:
            return NOT_TRIED
        if (name, what) not in self.known:
            self.known[name, what] = ask()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, what, self.known[name, what]]) + "\n")
            print(name, what, self.known[name, what], flush=True)
        return self.known[name, what]


def survey(prefix: str, answers: Answers, most: float, *, everything: bool) -> str:
    """Tries the classifiers of a library; returns its section of the page.

    Args:
        prefix: torchvision or timm.
        answers: what is known, and what is found out.
        most: million parameters of the models that are tried.
        everything: of timm every model, not the smallest of each module.

    Raises:
        SystemExit: the time ended before it was known which models are the smallest.
    """
    library = LIBRARIES[prefix]
    available = library.available()
    size_of = {
        each: answers.get(f"{prefix}:{each}", "millions", partial(millions, library, each)) for each in available
    }
    if NOT_TRIED in size_of.values():
        raise SystemExit(
            f"the time ended before the sizes of {prefix}'s models were known; call this again to continue"
        )
    names = sorted(available, key=lambda name: (size_of[name], name))
    if not everything:
        names = list(representative(library, names))
    tried = [f"{prefix}:{name}" for name in names if size_of[name] <= most]
    found: dict[str, list[str]] = {name: [] for name in tried}
    for size in SIZES:  # small ones first, which cost least
        for name in tried:
            found[name].append(answers.get(name, size, partial(answer, name, size)))
    return section(prefix, found, [f"{prefix}:{name}" for name in names if size_of[name] > most])


def section(prefix: str, found: dict[str, list[str]], left_out: list[str]) -> str:
    """Returns a library's section: the models that train at every size, the refusals, and what was not tried."""
    everywhere = sorted(name for name, each in found.items() if set(each) == {TRAINS})
    counts = []
    for size, column in zip(SIZES, zip(*found.values(), strict=True), strict=True):
        counts.append(f"{column.count(TRAINS)} of {len(column) - column.count(NOT_TRIED)} train at {size} x {size}")
    text = f"\n## {prefix}\n\n{', '.join(counts)} pixels.\n\nAt every size: {_listed(everywhere)}.\n"
    if others := sorted(found.keys() - set(everywhere)):
        rows = [f"| `{name}` | {' | '.join(each.replace('|', '/') for each in found[name])} |" for name in others]
        columns, rules = (" | ".join(each) for each in ([f"{size} x {size}" for size in SIZES], ["---"] * len(SIZES)))
        text += TABLE.format(columns=columns, rules=rules, rows="\n".join(rows))
    return text + (f"\nNot tried, as too large: {_listed(sorted(left_out))}.\n" if left_out else "")


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True, help="JSON lines; what is there is not tried again")
    parser.add_argument("--output", type=Path, required=True, help="the page")
    parser.add_argument("--library", choices=LIBRARIES, nargs="+", default=list(LIBRARIES))
    parser.add_argument("--most", type=float, default=150, help="million parameters")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which the page is written as it is")
    parser.add_argument("--all", action="store_true", help="every model of timm")
    options = parser.parse_args()
    answers = Answers(options.answers, options.minutes)
    sections = [survey(each, answers, options.most, everything=options.all) for each in options.library]
    versions = ", ".join(f"{name} {version(name).partition('+')[0]}" for name in ("torch", *options.library))
    page = PAGE.format(
        libraries=" and ".join(options.library),
        which=" and ".join(WHICH[each] for each in options.library),
        options="" if options.library == list(LIBRARIES) else f" --library {' '.join(options.library)}",
        most=options.most,
        versions=versions,
    )
    options.output.write_text(page + "".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
