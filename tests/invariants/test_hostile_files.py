"""Pickles that would run code, planted in every file of a run directory and of data sets; none is ever unpickled."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import ROOT, SMALL, call, settings

RECIPE = [
    "digits_mart",
    *SMALL,
    *settings(
        bullet="false",
        selector__name="random",
        train__validate_every=1,
        evaluation__pgd="false",
        logging__trackers='["tensorboard"]',
    ),
]
MARKER = "code-ran"
LATEST = "checkpoints/step_00000004"


class Opens:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (MARKER, "w")


def payloads() -> dict[str, bytes]:
    """Returns the ways in which a pickle can stand in a file."""
    found = {f"pickle {protocol}": pickle.dumps(Opens(), protocol) for protocol in (0, 5)}
    for name, zipped in (("torch", True), ("torch, old", False)):
        content = io.BytesIO()
        torch.save({"model": Opens()}, content, _use_new_zipfile_serialization=zipped)
        found[name] = content.getvalue()
    objects = np.array([Opens()], dtype=object)
    for name, save in (
        ("npy", lambda file: np.save(file, objects, allow_pickle=True)),
        ("npz", lambda file: np.savez(file, indices=objects, weights=objects)),
    ):
        content = io.BytesIO()
        save(content)
        found[name] = content.getvalue()
    return found


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, of whose files copies are spoilt."""
    from unittest import mock

    from robustcords.cli.app import main

    run = tmp_path_factory.mktemp("finished") / "run"
    with (
        mock.patch("sys.argv", ["robustcords", "run", *RECIPE, "--output", str(run)]),
        pytest.raises(SystemExit) as end,
    ):
        main()
    assert end.value.code == 0
    return run


def files(run: Path) -> list[Path]:
    return sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())


def attempt(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> int:
    """Runs a command, which may pass over what it does not read or say in one line what is damaged."""
    answer = call(capsys, *arguments)
    assert not Path(MARKER).exists(), arguments
    assert answer.status in {0, 2}, answer
    assert "Traceback" not in answer.err
    errors = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == (answer.status == 2), answer
    return answer.status


def test_the_payloads_would_run_where_they_are_unpickled() -> None:
    for name, content in payloads().items():
        with contextlib.suppress(AttributeError, TypeError):  # an open file is not what they expect
            if name.startswith("np"):
                loaded = np.load(io.BytesIO(content), allow_pickle=True)
                _ = loaded["indices"] if name == "npz" else loaded
            elif name.startswith("torch"):
                torch.load(io.BytesIO(content), weights_only=False)
            else:
                pickle.loads(content)
        assert Path(MARKER).exists(), name
        Path(MARKER).unlink()


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_no_file_of_a_run_can_run_code(finished: Path, capsys: pytest.CaptureFixture[str], every: bool) -> None:
    names = {path.as_posix().partition("/")[0] for path in files(finished)}
    assert names >= {
        "recipe.toml", "environment.json", "metrics.jsonl", "selections", "checkpoints", "weights", "evaluation",
        "report.json", "report.md", "trackers",
    }  # fmt: skip
    planted, given = list(payloads().values()), set[str]()
    chosen = {re.sub(r"[0-9a-f]{32}|\d+|best|last", "#", str(name)): name for name in files(finished)}
    for number, name in enumerate(files(finished) if every else chosen.values()):
        likely = -1 if name.suffix == ".npz" else number % len(planted)
        for content in planted if every else [planted[likely]]:
            shutil.copytree(finished, "run")
            Path("run", name).write_bytes(content)
            attempt(capsys, "evaluate", "run")
            if name.suffix == ".toml":
                attempt(capsys, "validate", Path("run", name))
            attempt(capsys, "run", *RECIPE, "--resume", "--output", "run")
            if every or name.suffix not in given:  # a file of weights is known by its suffix
                given.add(name.suffix)
                weights = ["--weights", Path("run", name), "--output", "chosen.npz"]
                assert attempt(capsys, "select", "digits_mart", *settings(model__width=4), *weights) == 2
            Path("run/report.json").unlink()  # so that the run goes on
            attempt(capsys, "run", *RECIPE, "--resume", "--output", "run")
            shutil.rmtree("run")


def test_a_planted_checkpoint_with_the_right_checksums(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bombs = list(payloads().values())
    planted = [
        {"tensors.safetensors": bombs[1]},
        {"state.json": bombs[0]},
        {"state.json": b"[" * 100_000},
        {"state.json": b"{}"},
        {"state.json": b'{"progress": {"epoch": "x"}}'},
    ]
    for contents in planted:
        shutil.copytree(finished, "run")
        Path("run/report.json").unlink()
        for name, content in contents.items():
            Path("run", LATEST, name).write_bytes(content)
        names = ("state.json", "tensors.safetensors")
        sums = {name: hashlib.sha256(Path("run", LATEST, name).read_bytes()).hexdigest() for name in names}
        Path("run", LATEST, "manifest.json").write_text(json.dumps(sums))
        attempt(capsys, "run", *RECIPE, "--resume", "--output", "run")
        shutil.rmtree("run")


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"epoch": "x"}', "[" * 100_000, '{"recipe": {}}', "\x00"])
def test_json_of_another_kind(finished: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    shutil.copytree(finished, "run")
    for name in ("report.json", "metrics.jsonl"):
        kept = Path("run", name).read_bytes()
        Path("run", name).write_text(f"{content}\n")
        status = attempt(capsys, "run", *RECIPE, "--resume", "--output", "run")
        assert status == (2 if name == "report.json" else 0), "a finished run's metrics are not read"
        assert attempt(capsys, "evaluate", "run") == (0 if name == "report.json" else 2)
        Path("run", name).write_bytes(kept)
    for file in Path("run/evaluation").rglob("*.json"):
        file.write_text(content)
    assert attempt(capsys, "evaluate", "run") == 0, "what cannot be gone on from is done again"


def test_missing_metrics_are_noticed_before_training_goes_on(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, "run")
    Path("run/report.json").unlink()
    metrics = Path("run/metrics.jsonl")
    missing = "run/metrics.jsonl: damaged: not one line for each of the 2 epochs that are done\n"
    metrics.write_bytes(pickle.dumps(Opens()))
    assert call(capsys, "run", *RECIPE, "--resume", "--output", "run").err.endswith(missing)
    metrics.unlink()
    assert call(capsys, "run", *RECIPE, "--resume", "--output", "run").err.endswith(missing)
    metrics.mkdir()
    answer = call(capsys, "run", *RECIPE, "--resume", "--output", "run")
    assert answer.err.endswith("run/metrics.jsonl: cannot be read (Is a directory)\n")


def test_best_weights_that_are_gone_are_missed(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished, "run")
    Path("run/report.json").unlink()
    Path("run/weights/best.safetensors").unlink()
    answer = call(capsys, "run", *RECIPE, "--resume", "--output", "run")
    assert answer.status == 2
    assert answer.err.endswith("weights run/weights/best.safetensors: there is no such file\n")


FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "read_pickle", "load_state", "save_state", "jit.load"}


def loads(path: Path) -> list[str]:
    """Returns the calls and imports of a module with which data could become code."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if name.partition(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name, options = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
        plain = name in FORBIDDEN_CALLS  # a method such as model.eval() has a dot
        method = name.rpartition(".")[2] in FORBIDDEN_CALLS - {"eval", "compile", "exec"}
        torch_load = name.endswith("torch.load") and options.get("weights_only") != "True"
        array = options.get("allow_pickle", "False") != "False"
        if (
            plain
            or method
            or torch_load
            or array
            or name.endswith(("jit.load", "torch.hub.load", "load_state_dict_from_url"))
        ):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_no_code_here_unpickles_or_evaluates_data() -> None:
    modules = [*(ROOT / "robustcords").rglob("*.py"), ROOT / "cli.py"]
    assert len(modules) > 50
    assert {path.name: found for path in modules if (found := loads(path))} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "from joblib import load", "torch.load(f)", "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)", "eval(text)", "exec(text)", "accelerator.load_state(f)", "pd.read_pickle(f)",
        "torch.jit.load(f)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(tmp_path: Path, code: str) -> None:
    (tmp_path / "module.py").write_text(f"model.eval()\ntorch.compile(model)\nnp.load(f)\n{code}\n")
    assert len(loads(tmp_path / "module.py")) == 1
