"""The commit that a run is said to be made with."""

from __future__ import annotations

import subprocess
from pathlib import Path

from robustcords.experiments.environment import git_commit


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    command = ["git", *who, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_the_files_own_repository(tmp_path: Path) -> None:
    file, installed = tmp_path / "code.py", tmp_path / "site-packages.py"
    file.write_text("a = 1\n")
    assert git_commit(file) is None
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "--message", "first")
    git(tmp_path, "tag", "v1")
    head = git(tmp_path, "rev-parse", "HEAD")
    installed.write_text("a = 1\n")
    assert git_commit(file) == head
    assert git_commit(installed) is None, "it only lies there"
    file.write_text("a = 2\n")
    assert git_commit(file) == f"{head}-dirty"
