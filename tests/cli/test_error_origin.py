"""Errors in classes from outside this package are one line; this package's own keep their traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command_line import SMALL, Command, settings

LOSS = """
from robustcords.losses.objective import Objective
from robustcords.losses.sat import SAT
from robustcords.selection.base import Strategy
from robustcords.attacks.pgd import PGD
from robustcords.losses.trades import kl_divergence
import torch


class Raises(SAT):
    def from_logits(self, logits, y):
        return {}["x"]


class Lambda(SAT):
    def objective(self, y, clean):
        return Objective(lambda logits: logits / [][0])


class InTorch(SAT):
    def from_logits(self, logits, y):
        return torch.nn.functional.cross_entropy(logits["adversarial"], y.float()[:1])


class InOurs(SAT):
    def from_logits(self, logits, y):
        return self.cross_entropy(logits["adversarial"].flatten(), y)


class InHelper(SAT):
    def from_logits(self, logits, y):
        return kl_divergence(logits["adversarial"], None)


class Unbuilt(SAT):
    def __init__(self, **options):
        raise OSError(2, "no such teacher", "teacher.pt")


class Search(PGD):
    def search(self, model, x, objective, noise):
        raise ValueError("two\\nlines")


class NoContext(Strategy):
    @classmethod
    def from_context(cls, config, context):
        return cls(config)

    def __init__(self, config, context):
        pass

    def select(self, budget, model_params):
        return []


class NoSelect(NoContext):
    def __init__(self, config):
        pass

    def select(self, budget, model_params):
        return 1 / 0
"""


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"loss__name": "mine:Raises"}, "mine:Raises.from_logits failed: KeyError: 'x' (mine.py:12)"),
        (
            {"loss__name": "mine:Lambda"},
            "mine:Lambda.objective.<locals>.<lambda> failed: IndexError: list index out of range (mine.py:17)",
        ),
        ({"loss__name": "mine:InTorch"}, "mine:InTorch.from_logits failed: "),
        ({"loss__name": "mine:InOurs"}, "mine:InOurs.cross_entropy failed: "),
        ({"loss__name": "mine:InHelper"}, "mine:InHelper.from_logits failed: "),
        (
            {"loss__name": "mine:Unbuilt"},
            "mine:Unbuilt.__init__ failed: FileNotFoundError: [Errno 2] no such teacher: 'teacher.pt' (mine.py:37)",
        ),
        ({"attack__name": "mine:Search"}, "mine:Search.search failed: ValueError: two lines (mine.py:42)"),
        ({"selector__name": "mine:NoContext"}, "mine:NoContext.from_context failed: TypeError: NoContext.__init__"),
        ({"selector__name": "mine:NoSelect"}, "mine:NoSelect.select failed: ZeroDivisionError: "),
    ],
)
def test_a_class_from_outside_is_named(command: Command, tmp_path: Path, options: dict[str, str], line: str):
    (tmp_path / "mine.py").write_text(LOSS)
    common = {"train__memory_format": "contiguous", "selector__select_every": 1, "selector__select_first": "true"}
    recipe = ("run", "digits_mart", *SMALL, *settings(**common, **options))
    quiet = command(*recipe)
    assert quiet.status == 2, quiet.err
    assert quiet.err.splitlines()[-1].startswith(f"error: {line}")
    assert "mine.py:" in quiet.err.splitlines()[-1]
    assert "Traceback" not in quiet.err
    during = "Search" in line or "NoSelect" in line
    assert (tmp_path / "runs").exists() == during, "what can be found out before there is a run is"
    loud = command("--debug", *recipe)
    assert (loud.status, loud.err.splitlines()[-1]) == (2, quiet.err.splitlines()[-1])
    assert "Traceback (most recent call last)" in loud.err


@pytest.mark.parametrize("error", [ZeroDivisionError, OSError, MemoryError])
def test_our_own_keep_their_traceback(command: Command, monkeypatch: pytest.MonkeyPatch, error: type[Exception]):
    from robustcords.losses.mart import MART

    code = compile("def fails(self, logits, y):\n    raise error('ours')\n", MART.__module__, "exec")
    names = {"__name__": MART.__module__, "error": error}
    exec(code, names)
    monkeypatch.setattr(MART, "from_logits", names["fails"])
    with pytest.raises(error, match="ours"):
        command("run", "digits_mart", *SMALL)


def test_memory_that_runs_out_is_nobodys_fault(command: Command, tmp_path: Path):
    (tmp_path / "large.py").write_text(LOSS.replace('return {}["x"]', "raise MemoryError"))
    with pytest.raises(MemoryError):
        command("run", "digits_mart", *SMALL, *settings(loss__name="large:Raises"))
