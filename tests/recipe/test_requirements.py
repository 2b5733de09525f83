"""Components that do not go together are refused when a recipe is read, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import Command
from support.written import BASE, Write, message

from robustcords.recipe import recipe

PARTS = """
from robustcords import SAT, AdversarialTraining, Effort, Method, PGD, Wrapper


class Own(Method):
    step = None


class OneView(Own):
    provides = frozenset({"an adversarial view"})


class Around(Wrapper):
    pass


class Features(SAT):
    requires = "features"


class WithFeatures(PGD):
    provides = frozenset({"features"})


class Varied(Effort):
    plan = None


class Unvaried(Varied):
    requires = frozenset()
"""


@pytest.fixture
def parts(command: Command, tmp_path: Path) -> Iterator[None]:
    """The folder of the test has the module ``parts``."""
    (tmp_path / "parts.py").write_text(PARTS)
    yield
    del command


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["effort.name=bullet", "method.name=parts:Own"],
            '--set effort.name=bullet: [effort] name = "bullet": requires attack steps to vary, and method "parts:Own" '
            'attacks all images alike; set effort.name = "uniform"',
        ),
        (
            ["effort.name=parts:Varied", "method.name=parts:Own"],
            '[effort] name = "parts:Varied": requires attack steps to vary, and method "parts:Own" attacks all images',
        ),
        (
            [
                "bullet=true",
                "method={name = 'parts:Around', inner.name = 'parts:Around'}",
                "method.inner.inner.name=parts:Own",
            ],
            '[effort] name = "bullet": requires attack steps to vary, and method "parts:Own" attacks all images alike',
        ),
        (
            ["loss.name=mart", "method.name=parts:OneView"],
            '[loss] name = "mart": requires a clean view, and method "parts:OneView" has none',
        ),
        (
            ["loss.name=standard", "method={name = 'parts:Around', inner.name = 'parts:OneView'}"],
            '[loss] name = "standard": requires a clean view, and method "parts:OneView" has none',
        ),
        (
            ["method.name=fast_bat", "threat={norm = 'l2', epsilon = 0.5}"],
            '[method] name = "fast_bat": requires a bound for every pixel by itself, and threat "l2" has none',
        ),
        (
            ["effort.name=bullet", "method.name=awp", "method.inner.name=free"],
            '[effort] name = "bullet": requires attack steps to vary, and method "free" attacks all images alike',
        ),
        (
            ["attack.name=atas", "effort.name=ramp"],
            '[attack] name = "atas": requires one radius in all epochs, and effort "ramp" varies it; set effort.name = '
            '"uniform"',
        ),
        (
            ["loss.name=grad_align", "train.compile=true"],
            '[loss] name = "grad_align": requires derivatives of gradients, and [train] compile is true',
        ),
        (
            ["loss.name=parts:Features"],
            '[loss] name = "parts:Features": requires features, which nothing in the recipe provides',
        ),
        (
            ["selector.name=adv-glister", "data.validation_fraction=0.0"],
            '[selector] name = "adv-glister": requires validation images, and [data] validation_fraction is 0',
        ),
        (
            ["selector.name=cords.selectionstrategies.SL:GLISTERStrategy", "data.validation_fraction=0.0"],
            '[selector] name = "cords.selectionstrategies.SL:GLISTERStrategy": requires validation images, and [data]',
        ),
    ],
)
def test_what_does_not_go_together(write: Write, options: list[str], expected: str):
    assert expected in message(write(BASE), *options)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    "options",
    [
        ["method.name=parts:Own"],
        ["method.name=parts:OneView"],
        ["method.name=parts:Own", "loss.name=mart"],
        ["method.name=parts:Own", "effort.name=parts:Unvaried"],
        ["method.name=parts:Around", "bullet=true", "loss.name=mart"],
        ["bullet=true", "attack.name=fgsm"],
        ["loss.name=parts:Features", "attack.name=parts:WithFeatures"],
        ["selector.name=adv-glister"],
        ["selector.name=adv-gradmatch", "data.validation_fraction=0.0"],
    ],
    ids=str,
)
def test_what_does(write: Write, options: list[str]):
    recipe.load(write(BASE), options)
