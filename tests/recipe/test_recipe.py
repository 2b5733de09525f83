"""One recipe: what it means, and what is wrong with it."""

from __future__ import annotations

import datetime
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.cases import cases
from support.written import BASE, GLISTER, TABLES, Write, message

from robustcords.errors import UserError
from robustcords.recipe import recipe

PERIODS = "(one of: full, per_batch, per_class, per_gradient)"


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
    assert loaded.effort.name == "uniform"
    assert (loaded.seed, loaded.train.epochs, loaded.train.batch_size) == (0, 100, 128)
    assert loaded.evaluation.checkpoints == ["best", "last"]
    assert loaded.evaluation.pgd is not None
    assert loaded.evaluation.pgd.epsilons == [4 / 255, 8 / 255, 16 / 255]


@cases(
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
            "[loss] name = \"mrat\": unknown loss 'mrat'; did you mean 'mart'? (one of: grad_align, mart, nuat, sat, "
            "standard, trades)",
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
            "selector.name = 'robustcords.selection.strategies.scored:ScoredStrategy'",
            '[selector] name = "robustcords.selection.strategies.scored:ScoredStrategy": ScoredStrategy lacks scores',
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
        ("threat.epsilon = -1", '[threat] epsilon = -1: must be a number >= 0 or a fraction such as "8/255"'),
        (
            "threat.epsilon = '8/0'",
            "[threat] epsilon = \"8/0\": '8/0' is not a number or a fraction such as '8/255'",
        ),
        ("loss.name = 'größe'", '[loss] name = "größe": unknown loss \'größe\' '
         "(one of: grad_align, mart, nuat, sat, standard, trades)"),
        ("attack.steps = 'abc'", '[attack] steps = "abc": must be a whole number >= 0 and <= 10000'),
        ("model.depths = [1, 0]", "[model] depths[1] = 0: must be a whole number >= 1 and <= 200"),
        ("bullet.steps.robust = -1", "[bullet] steps.robust = -1: must be a whole number >= 0 and <= 10000"),
        ("bullet.steps.rubust = 1", "[bullet.steps] unknown key \"rubust\"; did you mean 'robust'? "
         "(one of: boundary, outlier, robust)"),
        ("train.epochs = 0", "[train] epochs = 0: must be a whole number >= 1"),
        ("train.clip_gradient = 0", "[train] clip_gradient = 0: must be a number > 0 or false"),
        ("train.averaging = 'ema'", '[train] averaging = "ema": must be a table or false'),
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
         "batch_size, budget, checkpoint_every, clip_gradient, compile, cuda_graphs, epochs, keep_checkpoints, "
         "memory_format, precision, shuffle_window, steps, sync_batchnorm, time_limit, validate_every)"),
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


@cases(
    ("text", "expected"),
    [
        (
            "data.validation_fraction = 0\nevaluation.checkpoints = ['best']",
            '[evaluation] checkpoints = ["best"]: "best" is chosen on validation images, and [data] '
            "validation_fraction is 0",
        ),
        (
            "data.validation_fraction = 0\nselector.name = 'adv-glister'",
            '[selector] name = "adv-glister": requires validation images, and [data] validation_fraction is 0',
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


def test_files_that_are_no_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
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
        "no file and no shipped recipe is called 'digits_matr'; did you mean 'digits_mart'? (one of "
    )


def test_everything_that_is_wrong_is_said_at_once(write: Write) -> None:
    with pytest.raises(UserError) as error:
        recipe.load(
            write("sed = 1\n" + BASE + "[train]\nepochs = -1\nbatch_sise = 3\n[bullet]\nfoo = 2\n[losss]\nx = 1\n")
        )
    starts = [
        'unknown key "sed"',
        "unknown table [losss]",
        '[bullet] unknown key "foo"',
        "[train] epochs = -1: must be",
    ]
    starts.append("[train] unknown key \"batch_sise\"; did you mean 'batch_size'?")
    lines = [line.partition(": ")[2] for line in error.value.lines]
    assert all(any(line.startswith(start) for line in lines) for start in starts)
    assert len(lines) == len(starts)
    assert pickle.loads(pickle.dumps(error.value)).lines == error.value.lines


def test_one_wrong_item_of_a_list_is_one_line(write: Write) -> None:
    """``steps`` may be a number too, of which a list is one more problem."""
    with pytest.raises(UserError) as error:
        recipe.load(write(BASE + "[train]\nsteps = [3, 0]\n"))
    assert len(error.value.lines) == 1
    assert error.value.lines[0].startswith("r.toml: [train] steps = [3, 0]: must be a whole number >= 1 or a list of")


def test_a_misspelt_name_is_guessed(write: Write) -> None:
    with pytest.raises(UserError, match=r"\[model\] name is missing; is it \"nmae\", misspelt\?$"):
        recipe.load(write('[data]\nname = "digits"\n[model]\nnmae = "resnet8"\n[threat]\nepsilon = 0.1\n'))


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
    assert "step_size = 0.0375" in text, "what follows from the radius is written out"
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


@pytest.mark.usefixtures("importable")
def test_components_from_outside(write: Write) -> None:
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
        assert all(line.startswith("recipe: ") for line in str(error).splitlines()), "one line for each thing wrong"
    else:
        assert isinstance(recipe.dump(loaded), str)


@pytest.mark.parametrize("attack", ["pgd", "fgsm"])
def test_trades_wants_a_random_start(attack: str):
    changes = [f"attack.name={attack}", "attack.random_start=none"]
    with pytest.raises(UserError, match=r"attack.*random_start.*no gradient at the image itself"):
        recipe.load("digits_trades", changes)
    assert recipe.load("digits_mart", changes).attack.name == attack
    assert recipe.load("digits_trades", [*changes, "attack.objective=margin"]).attack.name == attack


def test_a_selector_is_a_strategy(importable: Path):
    code = "from robustcords.selection.base import StrategyConfig\nclass Bare:\n    Config = StrategyConfig\n"
    (importable / "bare_selector.py").write_text(code + "class Leaving:\n    pass\n")
    (importable / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(UserError, match="Strategy as its base"):
        recipe.load("digits_mart", ["selector.name=bare_selector:Bare"])
    with pytest.raises(UserError, match=r"leaving:X.*SystemExit"):
        recipe.load("digits_mart", ["selector.name=leaving:X"])
