from __future__ import annotations

from pathlib import Path

import pytest
from written import Write


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a recipe into an empty folder, which is the current one, and returns its name."""
    monkeypatch.chdir(tmp_path)

    def function(text: str, name: str = "r.toml") -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return name

    return function
