"""Recipes that nobody would write, through the command line: one line and exit status 2, or a recipe that works."""

from __future__ import annotations

import datetime
import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import tomli_w
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from support.command_line import Answer, call

from robustcords.errors import UserError
from robustcords.recipe import recipe
from robustcords.storage import run_directory

REACHED = "the directory would be made here"
BASE = 'data.name = "digits"\nmodel = {name = "resnet8", width = 4}\n'
COMPONENTS = ["data", "model", "loss", "attack", "selector", "optimizer", "schedule"]
KEYS = [
    *recipe.Recipe.model_fields, "losss", "extends", "path", "name", "epsilon", "norm", "steps", "step_size", "beta",
    "fraction", "granularity", "select_every", "lr", "milestones", "epochs", "batch_size", "accumulation", "averaging",
    "clip_gradient", "checkpoint_every", "time_limit", "pgd", "autoattack", "epsilons", "checkpoints", "limit",
    "trackers", "validation_fraction", "crop", "kind", "betas", "restarts", "boundary", "warmup",
]  # fmt: skip
OUTSIDE = [
    "..", "../escaped", "../../escaped", "/escaped", "/tmp/../escaped", "~", "~/escaped", "~nobody-at-all/x", ".", "",
    "a\0b", "a\nb", "/dev/null", "/proc/self/mem", "..:escaped", "/escaped:X", "os:system", "a.b:c", ":", "x" * 5000,
    "x/" * 3000, "torchvision:../escaped", "\u202e\x1b[31m", "\ufeff", "../escaped.toml",
]  # fmt: skip
EXTREMES = [
    0, -1, 1, 2**31, 2**63 - 1, -(2**63), 2**63, 10**400, 0.0, -0.0, 5e-324, 1.8e308, float("inf"), float("-inf"),
    float("nan"), True, False, [], {}, "8/255", "1/9e-300", "9e999", "0/0", "999999999 s", "0.0000001 s", "best",
    datetime.date(1979, 5, 27), datetime.time(1), [0] * 500, [[[[[]]]]],
]  # fmt: skip
# A hub id would be asked for over the network, so no text has a slash but those above.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="/\\~:"), max_size=20)
SCALARS = st.sampled_from(EXTREMES) | st.sampled_from(OUTSIDE) | st.integers() | st.floats() | st.booleans() | TEXT
LIKE: dict[type, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(0, 100),
    float: st.floats(0, 1),
    str: st.sampled_from(["8/255", "0.01", "none", "uniform", "random", "cosine", "adamw", "full", "10 min", "bf16"]),
}
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | TEXT, inner, max_size=3),
    max_leaves=8,
)
LARGE = 10 << 20
DOTS = ".a" * 2000
BROKEN = [
    b"", b"\0", b"\xff\xfe\0", b"\xed\xa0\x80", b'loss.name = "\xed\xa0\x80"', b"\xef\xbb\xbf" + BASE.encode(),
    BASE.encode("utf-16"), BASE.replace("\n", "\r\n").encode(), BASE.replace("\n", "\r").encode(), b"=", b"[", b'"""',
    b"\n" * LARGE, b"#" * LARGE, b"k = 1\n" * (LARGE // 6), b"a" * LARGE,
    f"{BASE}a{DOTS} = 1".encode(), f"{BASE}[a{DOTS}]".encode(), f"{BASE}[[a{DOTS}]]".encode(),
    f"{BASE}x = {{a{DOTS} = 1}}".encode(), f"{BASE}a{'.a' * 20} = 1".encode(), f"{BASE}[a{'.a' * 90}]".encode(),
    f"{BASE}train.epochs = {'[' * 400}{']' * 400}".encode(), f"{BASE}x = {'[' * 30000}".encode(),
    f"{BASE}x = {'{a = ' * 400}1{'}' * 400}".encode(), f"{BASE}x = {'{a = ' * 9000}".encode(),
    f"{BASE}train.checkpoint_every = 0x{'f' * 9000}".encode(), f"{BASE}seed = {'9' * 9000}".encode(),
    f'{BASE}threat.epsilon = "{"1" * 30000}{" " * 30000}"'.encode(), BASE.encode() + b"[[a]]\n" * 9000,
    (BASE + "".join(f"k{number} = 1\n" for number in range(5000))).encode(),
    b"extends = [" + b'"digits_mart", ' * 4000 + b"]", b'extends = "r.toml"', BASE.encode() + b"\x1b]0;x\x07 = 1",
]  # fmt: skip


WHOLE = recipe.dump(recipe.load("digits_mart", ["bullet=true", "train.averaging.kind=ema", "model.width=4"])).encode()


@st.composite
def trees(draw: st.DrawFn) -> bytes:
    """A recipe with a few values that no one meant: anywhere, or where some component has an option."""
    values: dict[str, Any] = {"data": {"name": "digits"}, "model": {"name": "resnet8", "width": 4}}
    for _ in range(draw(st.integers(0, 3))):
        key, value = draw(st.sampled_from(KEYS) | TEXT), draw(VALUES)
        table = values.get(draw(st.sampled_from([*COMPONENTS, "threat", "train", "evaluation", "effort"])))
        (table if isinstance(table, dict) else values)[key] = value
    if draw(st.booleans()):
        kind = draw(st.sampled_from([*COMPONENTS, "extends"]))
        place = draw(st.sampled_from(OUTSIDE))
        if kind == "extends":
            values[kind] = place
        elif isinstance(table := values.setdefault(kind, {}), dict):
            table[draw(st.sampled_from(["name", "path"] if kind == "data" else ["name"]))] = place
    try:
        return tomli_w.dumps(values).encode()
    except (ValueError, RecursionError):  # integers that Python itself does not write out
        return repr(values).encode("utf-8", "replace")


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """A whole recipe with one or two of its values changed, many of them to ones that are allowed."""
    values = tomllib.loads(WHOLE.decode())
    places = [place for place in _places(values) if place[1] != "compile"]  # takes seconds, whatever else it says
    for _ in range(draw(st.integers(1, 2))):
        table, key = draw(st.sampled_from(range(len(places))).map(places.__getitem__))
        like = LIKE.get(type(table[key]), SCALARS)
        table[key] = draw(like | like | st.sampled_from(EXTREMES))
    try:
        return tomli_w.dumps(values).encode()
    except ValueError:  # as above
        return repr(values).encode("utf-8", "replace")


def _places(table: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields every table that holds a value, and the value's key."""
    for key, value in table.items():
        yield from _places(value) if isinstance(value, dict) else [(table, key)]


@st.composite
def torn(draw: st.DrawFn) -> bytes:
    """A valid recipe with some bytes changed, cut off or put in."""
    content = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        content[place : place + draw(st.integers(0, 40))] = draw(st.binary(max_size=12))
    return bytes(content)


CONTENTS = st.one_of(
    trees(),
    changed(),
    changed(),
    torn(),
    st.integers(0, len(BROKEN) - 1).map(BROKEN.__getitem__),
    st.binary(max_size=300),
)
OUTPUTS = st.sampled_from([None, "out", "a\nb", "ü €", "x" * 300, "y/" * 2500, "..", ".", "\udcff", "-", "[red]"])


def _stop(output: Path | None, name: str) -> NoReturn:
    raise UserError(REACHED)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Imports now what takes seconds, so that no case has that in its time."""
    for name in ("robustcords.experiments.run", "datasets", "sklearn.datasets", "timm", "torchvision", "torch._dynamo"):
        importlib.import_module(name)


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is home, cache and working directory two levels down; runs end where they would make theirs."""
    inside = tmp_path / "around" / "here"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    monkeypatch.setenv("HOME", str(inside))
    monkeypatch.delenv("ROBUSTCORDS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(inside / "cache"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(run_directory, "create", _stop)
    yield tmp_path
    assert not Path("/escaped").exists()


def is_clean(answer: Answer) -> bool:
    """Returns whether a command succeeded, or said why not in lines of its own; libraries may have warned before."""
    lines = answer.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    refused = bool(errors) and lines[-len(errors) :] == errors and len(set(errors)) == len(errors)
    return answer.status == 0 or (answer.status == 2 and refused and "Traceback" not in answer.err)


def check(capsys: pytest.CaptureFixture[str], sandbox: Path, content: bytes, output: str | None) -> str:
    """Validates and runs a recipe, and returns how far it came."""
    Path("r.toml").write_bytes(content)
    valid = call(capsys, "validate", "r.toml")
    assert is_clean(valid), valid
    outcome = "refused by validate"
    if valid.status == 0:
        ran = call(capsys, "run", "r.toml", *([] if output is None else [f"--output={output}"]))
        assert ran.status == 2, ran
        assert is_clean(ran), ran
        outcome = "ready to train" if ran.err.endswith(f"{REACHED}\n") else "refused by run"
    found = {path.relative_to(sandbox).as_posix() for path in sandbox.rglob("*")}
    allowed = {"around", "around/here", "around/here/r.toml"}
    assert {path for path in found if not path.startswith("around/here/cache")} == allowed
    return outcome


FUZZ = {"derandomize": True, "print_blob": False, "suppress_health_check": list(HealthCheck)}
LIMIT = datetime.timedelta(seconds=20)  # for one case


@settings(max_examples=30, deadline=LIMIT, **FUZZ)
@given(content=CONTENTS, output=OUTPUTS)
def test_thirty_recipes(sandbox: Path, capsys: pytest.CaptureFixture[str], content: bytes, output: str | None) -> None:
    event(check(capsys, sandbox, content, output))


@pytest.mark.slow
@settings(max_examples=2000, deadline=LIMIT, **FUZZ)
@given(content=CONTENTS, output=OUTPUTS)
def test_two_thousand_recipes(
    sandbox: Path, capsys: pytest.CaptureFixture[str], content: bytes, output: str | None
) -> None:
    event(check(capsys, sandbox, content, output))


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_each_broken_file(sandbox: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    check(capsys, sandbox, content, None)


@pytest.mark.parametrize("place", OUTSIDE, ids=range(len(OUTSIDE)))
def test_each_name_that_leads_outside(sandbox: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    for key in ("data.name", "data.path", "model.name", "loss.name", "selector.name", "extends"):
        # Not one of torchvision's sets: those are downloaded to data.path, as documented.
        kept = "" if key.startswith("data.n") else 'data.name = "somebody/set"\n'
        kept += "" if key.startswith("model") else 'model = {name = "resnet8", width = 4}\n'
        check(capsys, sandbox, (kept + tomli_w.dumps({"x": place}).replace("x =", f"{key} =", 1)).encode(), None)


def test_a_run_of_a_recipe_with_an_odd_name_stays_below_runs(sandbox: Path, capsys: pytest.CaptureFixture[str]):
    Path("...toml").write_text(BASE)
    Path("recipe.toml").write_text(BASE)
    (sandbox / "around" / "recipe.toml").write_text(BASE)
    for source in ("...toml", "../recipe.toml"):
        answer = call(capsys, "run", source, "--resume")
        assert answer.err.endswith(f"error: {REACHED}\n"), "neither the folder around runs/ nor another is taken for it"
    assert sorted(map(str, Path().iterdir())) == ["...toml", "recipe.toml"]
