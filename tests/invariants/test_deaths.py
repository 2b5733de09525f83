"""A process that dies, in any phase, ends the others; the run goes on with another number of processes."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from support.command_line import ROOT, settings
from support.command_line import start as start_python
from support.digits_run import RECIPE, rows
from support.docs_pages import blocks
from support.ranks import ended, said, start

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")

RUN = [
    "run",
    *RECIPE,
    *settings(
        train__epochs=2,
        train__validate_every=2,
        selector__select_every=1,
        selector__granularity='"per_class"',  # so that every process selects
        evaluation__checkpoints='["last"]',
        evaluation__autoattack="{limit = 2, epsilons = [1.0]}",
    ),
    *("--output", "run", "--resume"),
]
DEATHS = [("training", 2, 1), ("selection", 3, 2), ("checkpoint", 2, 0), ("AutoAttack", 2, 0)]


def test_a_run_outlives_a_death_in_every_phase(tmp_path: Path):
    for place, world, victim in DEATHS:
        statuses = ended(start(world, tmp_path, RUN, victim=victim, place=place), within=60)
        assert statuses[victim] == -signal.SIGKILL, said(tmp_path, victim)
        assert all(status == 1 for rank, status in enumerate(statuses) if rank != victim)
        speaker = 1 if victim == 0 else 0
        reason = f"error: process {victim} has died, or cannot be reached any more; continue with --resume"
        for rank in range(world):
            expected = ("run", "resumed", "epoch", "warning: clean accuracy on the validation split")
            problems = [line for line in said(tmp_path, rank) if not line.startswith(expected)]
            assert problems == ([reason] if rank == speaker else [])
            assert rank == 0 or said(tmp_path, rank)[:-1] == []
            assert said(tmp_path, rank, "out") == []
    finish(tmp_path)


def finish(folder: Path) -> None:
    """Goes on to the end in one process."""
    assert ended(start(1, folder, RUN), within=240) == [0], said(folder, 0)
    assert [row["epoch"] for row in rows(folder / "run")] == [0, 1]
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["training"]["selections"] == [{"epoch": 0, "size": 43}, {"epoch": 1, "size": 43}]
    assert report["evaluation"]["last"]["autoattack_examples"] == 2


SCRIPT = """
import os
from support.ranks import die_in
from robustcords.cli.app import main
from robustcords.runtime.launch import spread

if __name__ == "__main__":
    spread([__file__])
    if os.environ["RANK"] == os.environ["VICTIM"]:
        die_in(os.environ["PLACE"])
    main()
"""
LAUNCHERS = {
    "accelerate": "accelerate.commands.launch --cpu --num_machines 1 --mixed_precision no --dynamo_backend no "
    "--num_processes",
    "torchrun": "torch.distributed.run --standalone --nproc_per_node",
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_so_it_does_behind_a_launcher(launcher: str, tmp_path: Path):
    script = tmp_path / "dying.py"
    script.write_text(SCRIPT)
    for place, world, victim in DEATHS:
        process = start_python(
            *("-m", *LAUNCHERS[launcher].split(), str(world), script, *RUN),
            folder=tmp_path,
            PYTHONPATH=f"{ROOT / 'tests'}:{ROOT / 'tests' / 'invariants'}",
            VICTIM=str(victim),
            PLACE=place,
        )
        out, err = process.communicate(timeout=300)
        assert (process.returncode, out) == (1, ""), err
        assert time.time() - (tmp_path / "died.txt").stat().st_mtime < 60
        reason = f"error: process {victim} has died, or cannot be reached any more; continue with --resume"
        assert [line for line in err.splitlines() if line.startswith("error")] == [reason], err
    finish(tmp_path)


SRUN = """#!/bin/bash
# What SLURM's srun does, on this machine: every task gets its number, and the worst status is its own.
shift  # --kill-on-bad-exit=0
worst=0
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    tasks[$task]=$!
done
for task in "${tasks[@]}"; do
    wait $task; status=$?
    ((status > worst)) && worst=$status
done
exit $worst
"""
SCONTROL = """#!/bin/bash
case $1 in
    show) echo localhost ;;
    requeue) echo $2 >>requeued.txt ;;
esac
"""


@pytest.mark.slow
def test_the_documented_job_is_requeued_until_it_is_done(tmp_path: Path):
    (script,) = blocks(ROOT / "docs" / "distributed.md", "bash")
    job = tmp_path / "job.sh"
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    recipe = tmp_path / "job.toml"
    recipe.write_text('extends = "digits_mart"\n[train]\nepochs = 2\n[evaluation]\nlimit = 8\nautoattack = false')
    slurm = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "42", "SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_NODELIST": "here"}
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    code = f"import os; os.execvp('bash', ['bash', {str(job)!r}])"
    for limit in ("0.1 s", "0.1 s", "1 h"):
        job.write_text(script.text.replace("23 h", limit))
        process = start_python("-c", code, folder=tmp_path, PATH=path, RECIPE=str(recipe), **slurm)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert ("error: stopped at train.time_limit" in err) == (limit != "1 h"), err
    assert re.search(r"^resumed from runs/job-42/checkpoints/step_", err, re.M), err
    assert (tmp_path / "requeued.txt").read_text().split() == ["42", "42"]
    assert [row["epoch"] for row in rows(tmp_path / "runs" / "job-42")] == [0, 1]
    assert (tmp_path / "runs" / "job-42" / "report.json").exists()
