"""Recipes on top of each other: bases, files, shipped names and ``--set``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.cases import cases
from support.written import BASE, GLISTER, TABLES, Write, message

from robustcords.errors import UserError
from robustcords.recipe import recipe


def test_a_file_wins_over_a_shipped_name_and_a_folder_does_not(tmp_path: Path, write: Write) -> None:
    (tmp_path / "digits_mart").mkdir()
    assert recipe.load("digits_mart").loss.name == "mart"
    assert recipe.load("digits_mart.toml").loss.name == "mart"
    assert recipe.load(write(BASE, "digits_trades")).loss.name == "sat"


def test_a_later_layer_wins_key_by_key(write: Write) -> None:
    write(
        BASE + "[train]\nepochs = 5\nbatch_size = 16\n[evaluation.pgd]\nsteps = 3\nepsilons = [0.1, 0.2]", "base/a.toml"
    )
    write("[train]\nepochs = 6\nvalidate_every = 2", "base/b.toml")
    loaded = recipe.load(
        write('extends = ["base/a.toml", "base/b.toml"]\ntrain.batch_size = 8\nevaluation.pgd.epsilons = ["4/255"]')
    )
    assert (loaded.train.epochs, loaded.train.batch_size, loaded.train.validate_every) == (6, 8, 2)
    assert loaded.evaluation.pgd is not None
    assert (loaded.evaluation.pgd.steps, loaded.evaluation.pgd.epsilons) == (3, [4 / 255])


def test_extends_is_seen_from_the_file_that_says_it(write: Write) -> None:
    write(BASE, "deep/er/base.toml")
    write('extends = "er/base.toml"', "deep/middle.toml")
    write('extends = "../shared.toml"\ntrain.epochs = 3', "deep/other.toml")
    write('extends = "deep/middle.toml"', "shared.toml")
    assert recipe.load("deep/other.toml").train.epochs == 3
    assert recipe.load(write('extends = "digits_mart"', "shipped.toml")).loss.name == "mart"


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "windows.toml").write_bytes(b"\xef\xbb\xbfseed = 3\n" + BASE.encode())
    assert recipe.load(str(tmp_path / "windows.toml")).seed == 3


def test_a_fraction_without_quotes(write: Write) -> None:
    with pytest.raises(UserError, match=r"not TOML: .*line 2.*; a fraction such as 8/255 needs quotes: \"8/255\"$"):
        recipe.load(write("[threat]\nepsilon = 8/255\n"))


def test_many_names_are_counted_and_the_nearest_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        recipe.load(str(tmp_path / "cifar10_matr.toml"))
    assert len(str(error.value)) < 400
    assert re.search(r"\(one of \d+\); `robustcords list recipe` lists them$", str(error.value))


def test_bases_that_cannot_be_extended(write: Write) -> None:
    write('extends = "b.toml"', "a.toml")
    write('extends = "a.toml"', "b.toml")
    assert message("a.toml") == "a.toml: recipes extend each other: a.toml -> b.toml -> a.toml"
    assert message(write("extends = 3")) == "r.toml: extends must be the name of a recipe, or a list of names"
    assert message(write('extends = "a/b.toml"')).startswith(
        "r.toml: extends: no file and no shipped recipe is called 'a/b.toml'"
    )
    write(BASE, "0.toml")
    for number in range(1, 10):
        write(f'extends = ["{number - 1}.toml", "{number - 1}.toml"]', f"{number}.toml")
    assert message("9.toml").endswith("extends more than 64 recipes")


def test_errors_name_the_file_that_wrote_the_key(write: Write) -> None:
    write(BASE + "[train]\nepochs = 0\n", "base.toml")
    source = write('extends = "base.toml"\ntrain.batch_size = 0')
    assert message(source, "train.epochs=1") == "r.toml: [train] batch_size = 0: must be a whole number >= 1"
    assert message(source, "train.batch_size=1") == "base.toml: [train] epochs = 0: must be a whole number >= 1"
    assert message(source, "train.batch_size=1", "train.epochs=-5") == (
        "--set train.epochs=-5: [train] epochs = -5: must be a whole number >= 1"
    )


def test_a_new_name_drops_what_only_the_old_component_knew(write: Write) -> None:
    source = write(BASE + '[loss]\nname = "mart"\nbeta = 2\nlabel_smoothing = 0.1')
    loaded = recipe.load(source, ["loss.name=sat"])
    assert loaded.loss.options() == {"label_smoothing": 0.1}
    assert recipe.load(source, ["loss.name=trades"]).loss.options() == {"label_smoothing": 0.1, "beta": 6.0}
    assert recipe.load(source, ["loss.name=trades", "loss.beta=3"]).loss.options()["beta"] == 3.0
    assert recipe.load(source, ["loss.name=mart"]).loss.options()["beta"] == 2.0
    valid = "(one of: label_smoothing, name)"
    assert message(source, "loss.beta=3", "loss.name=sat") == f'--set loss.beta=3: [loss] unknown key "beta" {valid}'
    assert message(write(BASE + '[loss]\nname = "sat"\nbeta = 2')) == f'r.toml: [loss] unknown key "beta" {valid}'


def test_options_of_one_name_and_another_meaning_are_dropped_and_shared_ones_stay(write: Write) -> None:
    source = write(BASE + GLISTER + '[attack]\nname = "pgd"\nsteps = 7\nstep_size = 0.01')
    fgsm = recipe.load(source, ["attack.name=fgsm"]).attack
    expected = {"objective": "loss", "random_start": "uniform", "step_size": 10 / 255}
    assert fgsm.options() == expected, "1.25 epsilon, not PGD's step"
    before = recipe.load(source).selector
    after = recipe.load(source, ["selector.name=random"]).selector
    assert before is not None
    assert after is not None
    assert (after.fraction, after.select_every) == (before.fraction, before.select_every)
    write("selector.fraction = 0.25\n" + BASE, "base.toml")  # written before there was a name
    assert recipe.load(write('extends = "base.toml"\nselector.name = "random"')).selector.fraction == 0.25  # type: ignore[union-attr]


def test_the_same_name_again_forgives_nothing(write: Write) -> None:
    write(BASE + '[loss]\nname = "mart"\nbta = 2', "base.toml")
    assert message(write('extends = "base.toml"\nloss.name = "mart"')).startswith('base.toml: [loss] unknown key "bta"')


def test_switching_tables_off_and_on(write: Write) -> None:
    source = write(BASE + GLISTER + "[bullet]\nmomentum = 0.5\n[train.averaging]\ndecay = 0.5")
    off = recipe.load(
        source,
        [
            "selector=false",
            "bullet=false",
            "evaluation.pgd=false",
            "evaluation.autoattack=false",
            "train.averaging=false",
        ],
    )
    assert (off.selector, off.effort.name, off.train.averaging) == (None, "uniform", None)
    assert (off.evaluation.pgd, off.evaluation.autoattack) == (None, None)
    kept = recipe.load(source, ["bullet=true"])
    assert (kept.effort.name, kept.effort.options()["momentum"]) == ("bullet", 0.5)
    fresh = recipe.load(source, ["bullet=false", "bullet=true", "selector=false", "selector.name=random"])
    assert fresh.effort.name == "bullet"
    assert fresh.selector is not None
    assert fresh.effort.options()["momentum"] == 0.9
    assert (fresh.selector.name, fresh.selector.select_every) != ("random", 7)
    empty = recipe.load(write(BASE + "[bullet]"))
    assert empty.effort == fresh.effort


def test_set_takes_toml_values_and_strings(write: Write) -> None:
    source = write(BASE + GLISTER)
    loaded = recipe.load(
        source,
        [
            "train.epochs = 2",
            "selector.name=random",
            "threat.epsilon=4/255",
            "evaluation.pgd={steps = 7, epsilons = [0.1]}",
            'logging.trackers=["wandb"]',
            "data.path=a = b",
            "train.clip_gradient=1",
        ],
    )
    assert loaded.train.epochs == 2
    assert loaded.selector is not None
    assert (loaded.selector.name, loaded.selector.select_every) == ("random", 7)
    assert loaded.threat.epsilon == 4 / 255
    assert loaded.evaluation.pgd is not None
    assert (loaded.evaluation.pgd.steps, loaded.evaluation.pgd.restarts) == (7, 10)
    assert loaded.logging.trackers == ["wandb"]
    assert loaded.data.path == "a = b"
    assert loaded.train.clip_gradient == 1.0


@cases(
    ("option", "expected"),
    [
        ("train.epochs", "--set train.epochs: expected KEY=VALUE, for example --set train.epochs=2"),
        ("=3", "--set =3: the key is empty or has an empty part; expected, for example, --set train.epochs=2"),
        ("a..b=3", "--set a..b=3: the key is empty or has an empty part; expected, for example, --set train.epochs=2"),
        ("train.epochs=1\nseed = 3", "--set train.epochs=1 seed = 3: [train] epochs = \"1\\nseed = 3\": "
         "must be a whole number >= 1"),
        ("extends=x", f"--set extends=x: unknown key \"extends\" (one of: {TABLES})"),
    ],
)  # fmt: skip
def test_set_that_makes_no_sense(write: Write, option: str, expected: str) -> None:
    assert message(write(BASE), option) == expected


def test_files_begin_at_the_recipe_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in ("study/images", "study/digits", "images", "elsewhere", "2024-01-01", "7"):
        (tmp_path / folder).mkdir(parents=True)
    mine = tmp_path / "study" / "mine.toml"
    mine.write_text('extends = "digits_mart"\n[data]\npath = "images"\n')
    monkeypatch.chdir(tmp_path)

    def path(*options: str) -> str | None:
        return recipe.load("study/mine.toml", options).data.path

    assert path() == str(tmp_path / "study" / "images")
    assert recipe.load("study/mine.toml").data.name == "digits", "a registered name is no folder"
    assert path("data.path=images") == str(tmp_path / "images")
    for text in ("2024-01-01", "7", '"7"', " 7 "):
        assert path(f"data.path={text}") == str(tmp_path / text.strip('" '))
    assert path("data.path=nowhere") == "nowhere"
    assert path('data={path = "images"}') == str(tmp_path / "images")
    # As before: where the recipe's folder has none, the current one may.
    mine.write_text('extends = "digits_mart"\n[data]\npath = "elsewhere"\n')
    assert path() == str(tmp_path / "elsewhere")
    written = tmp_path / "study" / "recipe.toml"
    written.write_text(recipe.dump(recipe.load("study/mine.toml")))
    monkeypatch.chdir(tmp_path / "7")
    assert recipe.load(written).data.path == str(tmp_path / "elsewhere")


def test_a_number_on_the_command_line_may_begin_with_its_dot():
    loaded = recipe.load("digits_mart", ["selector.fraction=.25", "optimizer.lr= .5"])
    assert (loaded.selector.fraction, loaded.optimizer.lr) == (0.25, 0.5)
