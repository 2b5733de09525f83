"""The ``[augmentation]`` table, and the keys of ``[data]`` that 0.1 had in its place."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from support.cases import cases
from support.written import BASE, Write, message
from torch import Tensor

from robustcords import AdversarialTraining, Augmentation, Loss, Noise
from robustcords.config.registry import names
from robustcords.config.requirements import GEOMETRY
from robustcords.data.augmentations.crop_flip import CropFlip
from robustcords.experiments import build
from robustcords.recipe.recipe import load
from robustcords.recipe.short_forms import of_run


class KeepsPerturbations(AdversarialTraining):
    requires = frozenset({GEOMETRY})


class Inverted(Augmentation):
    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        del noise
        return 1 - x


class Margin(Loss):
    views = ("clean",)

    def from_logits(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        return -logits["clean"].gather(1, y.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize(
    ("earlier", "now"), [("data.crop=2", "augmentation.crop=2"), ("data.flip=false", "augmentation.flip=false")]
)
def test_the_keys_of_version_0_1_mean_what_they_meant(earlier: str, now: str):
    assert load("digits_mart", [earlier]) == load("digits_mart", [now]) != load("digits_mart")


def test_a_key_in_its_earlier_place_too_is_refused(write: Write):
    twice = message(write(BASE + "augmentation.crop = 1\ndata.crop = 2\n"))
    assert twice.endswith(".toml: data.crop is augmentation.crop now; write one of the two")


def test_a_runs_recipe_of_version_0_1_is_that_of_now():
    old = {"data": {"name": "digits", "crop": 2}}
    assert of_run(old) == of_run({"data": {"name": "digits"}, "augmentation": {"name": "crop_flip", "crop": 2}})
    assert of_run({"seed": 1})["augmentation"] == {"name": "crop_flip"}
    assert old == {"data": {"name": "digits", "crop": 2}}, "what is given stays as it is"


def test_the_data_set_says_what_is_usual():
    recipe = load("cifar10_mart", ["data.name=svhn", "augmentation.crop=1"])
    images = build.data(load("digits_mart"))
    assert build.augmentation(load("digits_mart"), images).config == CropFlip.Config(crop=0, flip=False)
    source = build.component("data", recipe.data)
    assert CropFlip.resolved(recipe.augmentation, source) == CropFlip.Config(crop=1, flip=False)


def test_one_that_cannot_be_undone_is_refused_by_a_method_that_undoes_it(write: Write):
    path = write(BASE)
    options = [f"method.name={__name__}:KeepsPerturbations"]
    for name in ("crop_flip", "none"):
        load(path, [*options, f"augmentation.name={name}"])
    assert message(path, *options, f"augmentation.name={__name__}:Inverted").endswith(
        f'requires crops and flips that can be undone, and augmentation "{__name__}:Inverted" does more; set '
        'augmentation.name = "crop_flip" or "none"'
    )


@cases("name", ["cutmix", "mixup"])
@cases(
    ("option", "part"),
    [
        ("loss.name=mart", '[loss] name = "mart"'),
        ("bullet=true", '[effort] name = "bullet"'),
        (f"loss.name={__name__}:Margin", f'[loss] name = "{__name__}:Margin"'),
    ],
)
def test_mixed_labels_are_refused_where_one_class_is_required(write: Write, name: str, option: str, part: str):
    expected = f'{part}: requires hard labels, and augmentation "{name}" mixes images and their labels'
    assert message(write(BASE), option, f"augmentation.name={name}").endswith(expected)


@cases("name", ["cutmix", "mixup"])
@cases("loss", sorted(set(names("loss")) - {"mart"}))
def test_mixed_labels_go_with_a_cross_entropy(write: Write, name: str, loss: str):
    made = load(write(BASE), [f"augmentation.name={name}", f"loss.name={loss}", "augmentation.crop=2"])
    assert (made.augmentation.name, made.augmentation.crop) == (name, 2)


def test_crops_and_flips_stay_where_another_augmentation_is_named(write: Write):
    path = write(BASE + "augmentation.crop = 3\n")
    assert load(path, ["augmentation.name=cutout"]).augmentation.crop == 3
    assert not hasattr(load(path, ["augmentation.name=none"]).augmentation, "crop")
