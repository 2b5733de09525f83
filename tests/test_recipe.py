from __future__ import annotations

import datetime
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustcords import recipe
from robustcords.errors import UserError

Write = Callable[..., str]

BASE = 'data.name = "digits"\nmodel.name = "resnet8"\n'
GLISTER = '[selector]\nname = "adv-glister"\nfraction = 0.3\nselect_every = 7\n'
TABLES = "attack, bullet, data, evaluation, logging, loss, model, optimizer, schedule, seed, selector, threat, train"
PERIODS = "(one of: full, per_batch, per_class, per_gradient)"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def function(text: str, name: str = "r.toml") -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return function


def message(source: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        recipe.load(source, overrides)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def test_a_recipe_that_names_data_and_model_is_standard_adversarial_training(write: Write) -> None:
    loaded = recipe.load(write(BASE))
    assert (loaded.attack.name, loaded.loss.name, loaded.optimizer.name, loaded.schedule.name) == (
        "pgd",
        "sat",
        "sgd",
        "step",
    )
    assert loaded.threat.epsilon == 8 / 255
    assert loaded.selector is None
    assert loaded.bullet is None
    assert (loaded.seed, loaded.train.epochs, loaded.train.batch_size) == (0, 100, 128)
    assert loaded.evaluation.checkpoints == ["best", "last"]
    assert loaded.evaluation.pgd is not None
    assert loaded.evaluation.pgd.epsilons == [4 / 255, 8 / 255, 16 / 255]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed = -1", "seed = -1: must be a whole number >= 0 and < 4294967296"),
        ("seed = 1.0", "seed = 1.0: must be a whole number >= 0 and < 4294967296"),
        ("sed = 1", f"unknown key \"sed\"; did you mean 'seed'? (one of: {TABLES})"),
        ("[losss]\nbeta = 1", f"unknown table [losss]; did you mean 'loss'? (one of: {TABLES})"),
        ("train = 3", "train = 3: must be a table"),
        ("loss = false", "loss = false: must be a table"),
        ("selector = 3", "selector = 3: must be a table or false"),
        ("[[selector]]\nname = 'random'", 'selector = [{"name": "random"}]: must be a table or false'),
        ("[selector]\nfraction = 0.3", "[selector] name is missing"),
        ("loss.name = 3", "[loss] name = 3: must be a string"),
        (
            "loss.name = 'mrat'",
            "[loss] name = \"mrat\": unknown loss 'mrat'; did you mean 'mart'? (one of: mart, sat, standard, trades)",
        ),
        (
            "loss.name = 'json:dumps'",
            '[loss] name = "json:dumps": not of kind loss; it needs a nested Config, and Loss as its base',
        ),
        (
            "attack.name = 'robustcords.losses.mart:MART'",
            '[attack] name = "robustcords.losses.mart:MART": not of kind attack; it needs a nested Config, '
            "and Attack as its base",
        ),
        (
            "selector.name = 'robustcords.strategies.scored:ScoredStrategy'",
            '[selector] name = "robustcords.strategies.scored:ScoredStrategy": ScoredStrategy lacks scores',
        ),
        (
            "[loss]\nname = 'mart'\nbta = 1",
            "[loss] unknown key \"bta\"; did you mean 'beta'? (one of: beta, label_smoothing, name)",
        ),
        ("[loss]\nname = 'mart'\nbeta = 'x'", '[loss] beta = "x": must be a number >= 0'),
        ("[loss]\nname = 'mart'\nbeta = true", "[loss] beta = true: must be a number >= 0"),
        ("[loss]\nname = 'mart'\nbeta = nan", "[loss] beta = NaN: must be a number >= 0"),
        ("selector = {name = 'random', fraction = 1.5}", "[selector] fraction = 1.5: must be a number > 0 and <= 1"),
        ("selector = {name = 'random', fraction = 0}", "[selector] fraction = 0: must be a number > 0 and <= 1"),
        (
            "selector = {name = 'random', granularity = 'per_clas'}",
            f"[selector] granularity = \"per_clas\": unknown value; did you mean 'per_class'? {PERIODS}",
        ),
        ("threat.epsilon = -1", "[threat] epsilon = -1: must be a number >= 0"),
        (
            "threat.epsilon = '8/0'",
            "[threat] epsilon = \"8/0\": '8/0' is not a number or a fraction such as '8/255'",
        ),
        ("attack.steps = 'abc'", '[attack] steps = "abc": must be a whole number >= 0 and <= 10000'),
        ("model.depths = [1, 0]", "[model] depths[1] = 0: must be a whole number >= 1 and <= 200"),
        ("bullet.steps.robust = -1", "[bullet] steps.robust = -1: must be a whole number >= 0 and <= 10000"),
        ("bullet.steps.rubust = 1", "[bullet.steps] unknown key \"rubust\"; did you mean 'robust'? "
         "(one of: boundary, outlier, robust)"),
        ("train.epochs = 0", "[train] epochs = 0: must be a whole number >= 1"),
        ("train.clip_gradient = 0", "[train] clip_gradient = 0: must be a number > 0"),
        ("train.averaging = 'ema'", '[train] averaging = "ema": must be a table'),
        ("train.averaging.kind = 'eam'", '[train] averaging.kind = "eam": unknown value; did you mean '
         "'ema'? (one of: ema, swa)"),
        ("train.averaging.kind = ['ema']", '[train] averaging.kind = ["ema"]: must be one of: "ema", "swa"'),
        ("train.precision = 'fp8'", "[train] precision = \"fp8\": unknown value; did you mean 'fp32'? "
         "(one of: auto, bf16, fp16, fp32)"),
        ("evaluation.pgd.restarts = 0", "[evaluation] pgd.restarts = 0: must be a whole number >= 1 and <= 1000"),
        ("evaluation.checkpoints = ['beest']", "[evaluation] checkpoints[0] = \"beest\": unknown value; "
         "did you mean 'best'? (one of: best, last)"),
        ("logging.trackers = 'wandb'", '[logging] trackers = "wandb": must be a list, each a string'),
        ("logging.trackers = ['wandbb']", "[logging] trackers[0] = \"wandbb\": unknown tracker; did you mean 'wandb'? "
         "(one of: aim, clearml, comet_ml, dvclive, mlflow, swanlab, tensorboard, trackio, wandb)"),
        ("train.'two\\nlines' = 1", "[train] unknown key \"two\\\\nlines\" (one of: accumulation, averaging, "
         "batch_size, checkpoint_every, clip_gradient, compile, cuda_graphs, dynamics, epochs, keep_checkpoints, "
         "memory_format, overfitting, precision, time_limit, validate_every)"),
        ("a.b.c.d.e.f.g.h.i = 1", "tables are nested more than 8 deep"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(write: Write, text: str, expected: str) -> None:
    assert message(write(f"{text if '[' not in text[:2] else ''}\n{BASE}{text if '[' in text[:2] else ''}")) == (
        f"r.toml: {expected}"
    )


def test_data_and_model_have_to_be_named(write: Write) -> None:
    assert message(write('model.name = "resnet8"')) == "r.toml: [data] name is missing"
    assert message(write('data.name = "digits"')) == "r.toml: [model] name is missing"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "data.validation_fraction = 0\nevaluation.checkpoints = ['best']",
            '[evaluation] checkpoints = ["best"]: "best" is chosen on validation images, and [data] '
            "validation_fraction is 0",
        ),
        (
            "data.validation_fraction = 0\nselector.name = 'adv-glister'",
            '[selector] name = "adv-glister": selects with validation images, and [data] validation_fraction is 0',
        ),
        (
            "train = {batch_size = 2, accumulation = 3}",
            "[train] accumulation = 3: more micro-batches than the 2 images of a batch",
        ),
    ],
)
def test_tables_must_agree(write: Write, text: str, expected: str) -> None:
    assert message(write(BASE + text)) == f"r.toml: {expected}"


def test_the_one_who_wrote_last_made_tables_disagree(write: Write) -> None:
    assert message(write(BASE + GLISTER), "data.validation_fraction=0").startswith("--set data.validation_fraction=0: ")


def test_without_validation_images_only_last_is_evaluated(write: Write) -> None:
    source = write(BASE)
    assert recipe.load(source, ["data.validation_fraction=0"]).evaluation.checkpoints == ["last"]
    off = recipe.load(source, ["data.validation_fraction=0", "evaluation.pgd=false"]).evaluation
    assert (off.pgd, off.checkpoints) == (None, ["last"])


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.toml").write_bytes(b"a = '\xe9'")
    (tmp_path / "broken.toml").write_text("[data]\nname = = 3\n")
    (tmp_path / "digits.toml").write_text(f"seed = {'9' * 5000}\n")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 50_000)
    (tmp_path / "large.toml").write_text("#" * (1 << 16) + "\n")
    assert message("folder") == "folder is a folder; a recipe is a TOML file"
    assert message("latin.toml") == "latin.toml: not UTF-8 text (byte 5); a recipe is a TOML file"
    assert message("broken.toml") == "broken.toml: not TOML: Invalid value (at line 2, column 8)"
    assert message("digits.toml").startswith("digits.toml: not TOML: ")
    assert message("deep.toml") == "deep.toml: nested too deeply"
    assert message("large.toml") == "large.toml: larger than 64 KiB; that is no recipe"
    assert message("x" * 5000).endswith(": File name too long")
    assert message("digits_matr").startswith(
        "no file and no shipped recipe is called 'digits_matr'; did you mean 'digits_mart'? (one of: "
    )


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
    assert fgsm.options() == {"random_start": "uniform", "step_size": None}, "1.25 epsilon, not PGD's step"
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
    assert (off.selector, off.bullet, off.train.averaging) == (None, None, None)
    assert (off.evaluation.pgd, off.evaluation.autoattack) == (None, None)
    kept = recipe.load(source, ["bullet=true"])
    assert kept.bullet is not None
    assert kept.bullet.momentum == 0.5
    fresh = recipe.load(source, ["bullet=false", "bullet=true", "selector=false", "selector.name=random"])
    assert fresh.bullet is not None
    assert fresh.selector is not None
    assert fresh.bullet.momentum == 0.9
    assert (fresh.selector.name, fresh.selector.select_every) != ("random", 7)
    empty = recipe.load(write(BASE + "[bullet]"))
    assert empty.bullet == fresh.bullet


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


@pytest.mark.parametrize(
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


def test_dump_writes_radii_as_fractions_and_loads_again(write: Write) -> None:
    loaded = recipe.load(
        write(BASE + GLISTER + "[bullet]\nstep_size.robust = 0.11"),
        [
            "threat.epsilon=0.15",
            "train.averaging.kind=swa",
            "train.clip_gradient=0.5",
            "evaluation.autoattack=false",
            "logging.trackers=['mlflow', 'wandb']",
            "data.path=C:\\images\t\u2028",
        ],
    )
    text = recipe.dump(loaded)
    assert 'step_size = "2/255"' in text
    assert "epsilon = 0.15" in text
    assert "autoattack = false" in text
    assert recipe.load(write(text, "dumped.toml")) == loaded


def test_parse_checks_a_dictionary() -> None:
    values: dict[str, Any] = {"data": {"name": "digits"}, "model": {"name": "resnet8"}, "selector": None}
    assert recipe.parse(values).selector is None
    with pytest.raises(UserError, match=r"^mine: \[train\] epochs = 0: must be a whole number >= 1$"):
        recipe.parse({**values, "train": {"epochs": 0}}, "mine")
    with pytest.raises(UserError, match=r"^recipe: data = null: must be a table$"):
        recipe.parse({**values, "data": None})


OUTSIDE = """
from robustcords.losses.base import LossConfig
from robustcords.losses.sat import SAT

class Odd(SAT):
    class Config(LossConfig):
        name: str = "odd"
        gain: float = 2.0
"""


def test_components_from_outside(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write(OUTSIDE, "outside_loss.py")
    write("raise RuntimeError('two\\nlines')", "outside_broken.py")
    source = write(BASE)
    loaded = recipe.load(source, ["loss.name=outside_loss:Odd", "loss.gain=3"])
    assert loaded.loss.options() == {"label_smoothing": 0.0, "gain": 3.0}
    assert recipe.load(write(recipe.dump(loaded), "dumped.toml")) == loaded
    assert message(source, "loss.name=outside_loss:Od").endswith(
        "has no 'Od'; did you mean 'Odd'? (one of: LossConfig, Odd, SAT)"
    )
    assert message(source, "loss.name=outside_broken:X").endswith("importing it failed: RuntimeError: two lines")
    assert message(source, "loss.name=.relative:X").startswith("--set loss.name=.relative:X: [loss] name = ")


def test_reading_recipes_does_not_import_torch_until_one_is_checked() -> None:
    code = "import sys, robustcords.recipe; assert 'torch' not in sys.modules; robustcords.recipe.shipped()"
    subprocess.run([sys.executable, "-c", code], check=True)


KEYS = [
    "name", "epsilon", "norm", "steps", "step_size", "beta", "fraction", "granularity", "lr", "milestones", "epochs",
    "averaging", "clip_gradient", "pgd", "autoattack", "epsilons", "checkpoints", "limit", "trackers", "width",
    "depths", "validation_fraction", "robust", "kind", "betas", "path",
]  # fmt: skip
# Not those characters with which a string can name a folder or module of the machine that the test runs on.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="/\\.~:"), max_size=6)
NAMES = st.sampled_from(["mart", "sgd", "adamw", "random", "cosine", "digits", "resnet8", "8/255", "ema", "best"])
SCALARS = st.one_of(
    st.booleans(), st.integers(), st.integers(-(10**400), 10**400), st.floats(), TEXT, NAMES, st.dates(),
    st.just(datetime.time(1)),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | TEXT, inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*recipe.Recipe.model_fields, "losss"])


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(written=st.dictionaries(FIELDS, VALUES, max_size=3), whole=st.booleans())
def test_nothing_but_one_line_whatever_the_recipe_says(written: dict[str, Any], whole: bool) -> None:
    base = {"data": {"name": "digits"}, "model": {"name": "resnet8"}}
    values = {**(base if whole else {}), **written}
    try:
        loaded = recipe.parse(values)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert isinstance(recipe.dump(loaded), str)


@pytest.mark.parametrize("attack", ["pgd", "fgsm"])
def test_trades_wants_a_random_start(attack: str):
    changes = [f"attack.name={attack}", "attack.random_start=none"]
    with pytest.raises(UserError, match=r"attack.*random_start.*no gradient at the image itself"):
        recipe.load("digits_trades", changes)
    assert recipe.load("digits_mart", changes).attack.name == attack


def test_a_selector_is_a_strategy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = "from robustcords.strategies.base import StrategyConfig\nclass Bare:\n    Config = StrategyConfig\n"
    (tmp_path / "bare_selector.py").write_text(code + "class Leaving:\n    pass\n")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="Strategy as its base"):
        recipe.load("digits_mart", ["selector.name=bare_selector:Bare"])
    with pytest.raises(UserError, match=r"leaving:X.*SystemExit"):
        recipe.load("digits_mart", ["selector.name=leaving:X"])
