"""``[bullet]`` is ``[effort] name = "bullet"``, in recipes and in what old runs have written."""

from __future__ import annotations

import itertools

from support.cases import cases
from support.written import BASE, Write, message

from robustcords.recipe import recipe
from robustcords.recipe.short_forms import of_run, written_out

LONG = '[effort]\nname = "bullet"\nmomentum = 0.5\nsteps.robust = 3\n'
SHORT = "[bullet]\nmomentum = 0.5\nsteps.robust = 3\n"


def test_both_forms_are_the_same_recipe(write: Write):
    long, short = recipe.load(write(BASE + LONG)), recipe.load(write(BASE + SHORT))
    assert long == short
    assert "[effort.steps]" in recipe.dump(short)
    assert "[bullet" not in recipe.dump(short)
    assert recipe.load(write(recipe.dump(short), "again.toml")) == short


@cases("text", [LONG, SHORT])
@cases(
    ("options", "name", "momentum"),
    [
        ([], "bullet", 0.5),
        (["bullet=true"], "bullet", 0.5),
        (["bullet=false"], "uniform", None),
        (["bullet.steps.boundary=7"], "bullet", 0.5),
        (["effort.steps.boundary=7"], "bullet", 0.5),
        (["effort.name=uniform"], "uniform", None),
        (["bullet=false", "bullet=true"], "bullet", 0.9),
        (["bullet.momentum=0.1", "bullet=false"], "uniform", None),
        (["effort.name=bullet", "bullet.scale=0.5"], "bullet", 0.5),
        (["bullet.scale=0.5", "effort.name=bullet"], "bullet", 0.5),
        (["bullet=false", "effort.name=fat"], "fat", None),
        (["effort.name=fat", "bullet=false"], "fat", None),
        (["bullet=false", "effort.name=bullet"], "bullet", 0.9),
    ],
)
def test_settings_reach_either_form(write: Write, text: str, options: list[str], name: str, momentum: float | None):
    effort = recipe.load(write(BASE + text), options).effort
    assert effort.name == name
    assert effort.options().get("momentum") == momentum


def test_a_later_file_wins_in_whatever_form(write: Write):
    write(BASE + SHORT, "base.toml")
    below = recipe.load(write('extends = "base.toml"\n[effort]\nname = "uniform"'))
    assert below.effort.name == "uniform"
    write(BASE + '[effort]\nname = "uniform"', "base.toml")
    assert recipe.load(write('extends = "base.toml"\n' + SHORT)).effort == recipe.load(write(BASE + SHORT)).effort
    assert recipe.load(write('extends = "base.toml"\nbullet = false')).effort.name == "uniform"


@cases(
    ("text", "options", "expected"),
    [
        (
            SHORT + '[effort]\nname = "uniform"',
            [],
            'r.toml: [bullet] is short for [effort] name = "bullet"; write',
        ),
        (LONG + "[bullet]", [], 'r.toml: [bullet] is short for [effort] name = "bullet"; write one of the two'),
        ("[bullet]\nname = 'uniform'", [], 'r.toml: [bullet] unknown key "name"; [effort] has one'),
        (SHORT, ["bullet=3"], "--set bullet=3: bullet = 3: must be a table or false"),
        (SHORT, ["effort=false"], "--set effort=false: effort = false: must be a table"),
        (SHORT, ["bullet.scale=2.0"], "--set bullet.scale=2.0: [bullet] scale = 2.0: must be a number > 0 and <= 1"),
        (SHORT, ["effort.scale=2.0"], "--set effort.scale=2.0: [effort] scale = 2.0: must be a number > 0 and <= 1"),
        (
            SHORT,
            ["effort.name=bulet"],
            "--set effort.name=bulet: [effort] name = \"bulet\": unknown effort 'bulet';",
        ),
        *(
            (
                SHORT,
                list(options),
                f'--set {options[1]}: [bullet] is short for [effort] name = "bullet", and another --set has '
                'name = "fat"; write one of the two',
            )
            for options in itertools.permutations(["effort.name=fat", "bullet.scale=0.5"])
        ),
        ("", ["bulet=true"], "--set bulet=true: unknown key \"bulet\"; did you mean 'bullet'?"),
    ],
)
def test_what_is_wrong_is_said_as_it_was_written(write: Write, text: str, options: list[str], expected: str):
    assert message(write(BASE + text), *options).startswith(expected)


def test_off_leaves_another_effort_as_it_is(write: Write):
    text = BASE + 'bullet = false\n[effort]\nname = "uniform"'
    assert recipe.load(write(text)).effort.name == "uniform"
    assert written_out({"bullet": False}, {"effort": "mine:Own"}) == {}
    assert written_out({"bullet": False}, {"effort": "bullet"}) == {"effort": {"name": "uniform"}}


def test_awp_is_short_for_a_method_around_another(write: Write):
    short = recipe.load(write(BASE + "[awp]\ngamma = 0.01\n"))
    assert short == recipe.load(write(BASE + '[method]\nname = "awp"\ngamma = 0.01\ninner.name = "adversarial"'))
    assert recipe.load(write(BASE), ["awp=true"]).method.options()["gamma"] == 0.005
    assert recipe.load(write(BASE + "[awp]"), ["awp=false"]).method.name == "adversarial"
    assert recipe.load(write(BASE + "[method]\nname = 'free'"), ["awp=false"]).method.name == "free"
    around = recipe.load(write(BASE + "[awp]\ninner.name = 'fast_bat'"))
    assert around.method.inner.step_size == 5000 / 255, "what follows from the radius does so inside, too"


def test_a_runs_recipe_has_one_form():
    old = {"seed": 1, "bullet": {"momentum": 0.5}}
    new = {"seed": 1, "method": {"name": "adversarial"}, "effort": {"name": "bullet", "momentum": 0.5}}
    new["augmentation"] = {"name": "crop_flip"}
    assert of_run(old) == of_run(new) == new
    assert of_run({"seed": 1}) == of_run({"seed": 1, "effort": {"name": "uniform"}})
    assert old == {"seed": 1, "bullet": {"momentum": 0.5}}, "what is given stays as it is"
