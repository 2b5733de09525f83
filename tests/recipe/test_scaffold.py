from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from support.cases import cases

from robustcords.config import registry
from robustcords.errors import UserError
from robustcords.losses.mart import MART
from robustcords.recipe import recipe
from robustcords.recipe.describe import attributes, listing
from robustcords.recipe.scaffold import new, write


def test_says_what_was_asked_for_and_nothing_else_than_defaults() -> None:
    written = recipe.parse(tomllib.loads(new("cifar10", "mart", "adv-glister", 0.4, bullet=True)))
    asked = {
        "data": {"name": "cifar10"},
        "model": {"name": "resnet18"},
        "loss": {"name": "mart"},
        "selector": {"name": "adv-glister", "fraction": 0.4},
        "bullet": {},
    }
    assert written == recipe.parse(asked)


def test_full_data_without_bullet() -> None:
    written = recipe.parse(tomllib.loads(new("digits", "trades", "none")))
    assert (written.selector, written.effort.name) == (None, "uniform")


@cases("effort", registry.names("effort"))
def test_with_each_effort(effort: str) -> None:
    text = new("digits", "trades", None, effort=effort)
    assert recipe.parse(tomllib.loads(text)).effort.name == effort
    assert (f"with effort {effort}" in text.partition("\n")[0]) == (effort != "uniform")
    if effort == "bullet":
        assert text == new("digits", "trades", None, bullet=True)
    else:
        with pytest.raises(UserError, match="Bullet-Train is an effort, and so is"):
            new("digits", "trades", None, bullet=True, effort=effort)


@cases("selector", [None, *sorted(set(registry.names("selector")) - {"fixed", "infobatch"})])
@cases("loss", registry.names("loss"))
def test_every_combination_is_valid(loss: str, selector: str | None) -> None:
    recipe.parse(tomllib.loads(new("digits", loss, selector, bullet=True)))


@cases("method", registry.names("method"))
def test_every_method_is_valid(method: str) -> None:
    text = new("digits", "sat", method=method)
    assert recipe.parse(tomllib.loads(text)).method.name == method
    assert text.count("# One of `robustcords list method`") == (2 if method == "awp" else 1)


def test_every_key_has_its_comment() -> None:
    lines = new("digits", "mart", "adv-gradmatch", 0.3, bullet=True).splitlines()
    keys = [number for number, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert len(keys) > 40
    for number in keys:
        assert lines[number - 1].startswith("# ")
        assert lines[number - 1].endswith(".")
    assert 'epsilon = "8/255"' in lines
    assert (
        "# Weight of the misclassification-aware term (lambda in the MART paper). A number >= 0; default 5.0." in lines
    )


@cases(
    ("arguments", "expected"),
    [
        (("digits", "mrat", None, 0.3), r"unknown loss 'mrat'; did you mean 'mart'\?"),
        (("digits", "mart", "adv-glistr", 0.3), "unknown selector 'adv-glistr'; did you mean 'adv-glister'"),
        (("digits", "mart", "fixed", 0.3), r"^robustcords new: \[selector\] file is missing$"),
        (("digits", "mart", "random", 1.5), r"\[selector\] fraction = 1.5: must be a number > 0 and <= 1"),
    ],
)
def test_impossible_wishes(arguments: tuple[str, str, str | None, float], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        new(*arguments)


def test_write_refuses_a_file_that_is_there(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    write(file, data="digits", loss="mart", bullet=True)
    text = file.read_text(encoding="utf-8")
    assert text == new("digits", "mart", bullet=True)
    assert recipe.load(file).effort.name == "bullet"
    with pytest.raises(UserError, match=r"mine\.toml: exists already; choose another name"):
        write(file, data="digits", loss="sat")
    assert file.read_text(encoding="utf-8") == text
    with pytest.raises(UserError, match=r"no/mine\.toml: No such file or directory"):
        write(tmp_path / "no" / "mine.toml", data="digits", loss="sat")


def test_listing_describes_everything_that_has_a_name() -> None:
    found = listing()
    assert list(found) == [
        "data",
        "augmentation",
        "model",
        "threat",
        "attack",
        "loss",
        "method",
        "effort",
        "selector",
        "optimizer",
        "schedule",
        "callback",
        "evaluation_attack",
        "recipe",
    ]
    for kind in registry.KINDS:
        assert set(found[kind]) == set(registry.names(kind))
    assert found["loss"]["sat"].startswith("Cross-entropy on adversarial examples")
    assert found["recipe"]["digits_mart"].startswith("MART on 30 % of the handwritten digits")
    assert found["recipe"]["cifar10_awp"].endswith("arXiv 2004.05884")  # all of a sentence
    assert all(line for names in found.values() for line in names.values())
    assert listing("loss") == {"loss": found["loss"]}
    with pytest.raises(UserError, match="unknown kind 'los'; did you mean 'loss'"):
        listing("los")


def test_attributes_come_from_the_docstrings_of_a_class_and_its_bases() -> None:
    found = attributes(MART.Config)
    assert found["beta"] == "weight of the misclassification-aware term (lambda in the MART paper)."
    assert found["label_smoothing"].endswith("never on the attack's objective.")
    assert set(found) == {"beta", "label_smoothing"}
