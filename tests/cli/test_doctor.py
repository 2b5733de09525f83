"""What the doctor finds, and what it says of a part that is missing."""

from __future__ import annotations

import sys

import pytest
import torch

from robustcords.cli.doctor import examine, print_findings


def test_it_finds_what_the_tests_use(capsys: pytest.CaptureFixture[str]):
    found = {finding.part: finding for finding in examine()}
    for part in ("python", "torch", "accelerate", "cords", "autoattack", "data sets"):
        assert found[part].works, found[part].detail
        assert found[part].needed
    assert torch.__version__ in found["torch"].detail
    assert "0.0.4" in found["cords"].detail
    assert found["cuda"].works == torch.cuda.is_available()
    assert not found["cuda"].needed
    print_findings(list(found.values()))
    shown = capsys.readouterr().out
    assert all(part in shown for part in found)


@pytest.mark.parametrize(
    ("modules", "part", "remedy"),
    [
        (
            ["robustcords.selection._cords", "cords.selectionstrategies"],
            "cords",
            "pip install --no-deps cords==0.0.4",
        ),
        (["pyautoattack"], "autoattack", "pip install pyautoattack"),
    ],
)
def test_a_missing_part_is_one_line_that_says_what_to_do(
    modules: list[str], part: str, remedy: str, monkeypatch: pytest.MonkeyPatch
):
    import robustcords.selection

    monkeypatch.delattr(robustcords.selection, "_cords", raising=False)
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    if part == "cords":
        monkeypatch.delitem(sys.modules, "robustcords.selection._cords")
        monkeypatch.delitem(sys.modules, "cords.selectionstrategies.SL", raising=False)
    finding = next(finding for finding in examine() if finding.part == part)
    assert not finding.works
    assert finding.needed
    assert finding.detail.endswith((remedy, f"`{remedy}`"))
    assert "\n" not in finding.detail
