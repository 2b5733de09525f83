"""Clean and adversarial test images of finished runs, for the report page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from robustcords.attacks.pgd import PGD
from robustcords.data.images import Images
from robustcords.engine.modes import evaluation_mode
from robustcords.errors import UserError, one_line
from robustcords.experiments import build
from robustcords.experiments.picture_addresses import address, chosen
from robustcords.experiments.selected_pictures import selected
from robustcords.losses.objective import cross_entropy_of
from robustcords.recipe.recipe import Recipe, load
from robustcords.report.comparison import Comparison
from robustcords.report.page import Picture, Pictures
from robustcords.report.runs import Run
from robustcords.rng import Noise, derive

_ALL_BYTES = 900_000


def pictures(comparison: Comparison, count: int, on_progress: Callable[[int, int], None] | None = None) -> Pictures:
    """Returns test images, what PGD-10 at the training radius makes of them, and what the models say to both.

    Of each method the first run is shown whose weights are there. What cannot be shown is a note, never an error.

    Args:
        comparison: the runs.
        count: images of each run, of different classes as far as there are enough; 0 for none.
        on_progress: called with (done, all) methods.
    """
    if count == 0:
        return Pictures(notes=["No images were asked for (--images 0)."])
    gallery = _Gallery(count)
    shown, selections, size = [], [], 0
    without: dict[str, list[str]] = {}
    for done, method in enumerate(comparison.methods):
        if on_progress:
            on_progress(done, len(comparison.methods))
        run = next((run for run in method.runs if _weights(run)), method.runs[0])
        if size > _ALL_BYTES:
            without.setdefault("the page would become too large", []).append(method.name)
            continue
        try:
            found = list(gallery.of(run))
            if choosing := next((run for run in method.runs if run.selections), None):
                selections.append(selected(method.name, choosing, count, gallery.data))
        except Exception as error:  # data that is not here, another version's recipe, a custom model: all one note
            reason = str(error) if isinstance(error, UserError) else one_line(error)
            without.setdefault(reason, []).append(method.name)
            continue
        size += sum(len(picture.clean + picture.adversarial + picture.difference) for picture in found)
        shown.append((f"{method.name}, seed {run.seed}, {_weights(run)} weights", found))
    notes = [f"No images, as {reason}: {'; '.join(names)}." for reason, names in without.items()]
    caption = (
        "Test images; the same after PGD-10 on cross-entropy at the training radius, with steps of a quarter of it; "
        "and their difference, amplified until the largest change of a run's pixels is black or white; grey is none."
    )
    return Pictures(caption, shown, notes, selections)


@dataclass(frozen=True)
class AttackedImage:
    """A test image before and after an attack.

    Attributes:
        row: in the test set.
        label: its class.
        predicted: the class that the model predicts.
        attacked: the class that the model predicts after the attack.
        pixels: the image, the adversarial one and their difference, (C, H, W) in [0, 1]; the difference is amplified
            until the largest change of all images is black or white, and grey is none.
    """

    row: int
    label: str
    predicted: str
    attacked: str
    pixels: tuple[Tensor, Tensor, Tensor]


def attacked(
    model: nn.Module, images: Images, recipe: Recipe, count: int, device: torch.device | str = "cpu"
) -> Iterator[AttackedImage]:
    """Yields test images under PGD-10 at the training radius, of different classes as far as there are enough.

    Args:
        model: images in [0, 1] to logits.
        images: the test set.
        recipe: of the run, for the threat model and the seed.
        count: how many.
        device: the model's.
    """
    rows = chosen(images, count)
    x, y = images.batch(rows, device)
    attack = PGD(recipe.threat, steps=10, step_size=recipe.threat.epsilon / 4, random_start="uniform")
    with evaluation_mode(model):
        x_adv = attack(model, x, cross_entropy_of(y), Noise(derive(recipe.seed, "report"), rows))
        with torch.no_grad():
            before, after = (model(each).argmax(1).tolist() for each in (x, x_adv))
    names, x, x_adv = images.classes, x.cpu(), x_adv.cpu()
    scale = 2 * float((x_adv - x).abs().max().clamp(min=1e-12))
    for n, row in enumerate(rows.tolist()):
        pixels = (x[n], x_adv[n], 0.5 + (x_adv[n] - x[n]) / scale)
        yield AttackedImage(row, names[int(y[n])], names[before[n]], names[after[n]], pixels)


def _weights(run: Run) -> str | None:
    """Returns which weights of a run are shown: ``last``, else ``best``, else None."""
    return next((which for which in ("last", "best") if (run.path / "weights" / f"{which}.safetensors").exists()), None)


@dataclass
class _Gallery:
    """Makes the pictures of one run after the other, and loads the same data once."""

    count: int
    loaded: dict[str, build.Data] = field(default_factory=dict)

    def of(self, run: Run) -> Iterator[Picture]:
        """Yields the pictures of a run.

        Raises:
            UserError: its weights, its recipe or its data cannot be used.
        """
        which = _weights(run)
        if which is None:
            raise UserError("the run directory has no weights/")
        recipe = load(run.path / "recipe.toml", of_run=True)
        images = self.data(recipe)
        model = build.model(recipe, images)
        build.load_weights(model, run.path / "weights" / f"{which}.safetensors")
        for each in attacked(model, images.test, recipe, self.count):
            yield Picture(each.row, each.label, each.predicted, each.attacked, *map(address, each.pixels))

    def data(self, recipe: Recipe) -> build.Data:
        """Returns a recipe's images."""
        key = f"{recipe.seed} {recipe.data!r}"
        if key not in self.loaded:
            self.loaded = {key: build.data(recipe)}  # one at a time: a set can fill the memory
        return self.loaded[key]
