"""When a process that ``accelerate launch`` started has to start the others."""

from __future__ import annotations

import pytest

from robustcords.launching import missing_processes

CPU = {"ACCELERATE_USE_CPU": "True"}
ACCELERATE = ["python", "accelerate", "launch", "--cpu"]


@pytest.mark.parametrize(
    ("launcher", "environment", "number"),
    [
        ([*ACCELERATE, "--num_processes", "3", "cli.py", "run", "x"], CPU, 3),
        ([*ACCELERATE, "--num-processes=2", "cli.py"], CPU, 2),
        ([*ACCELERATE, "--num_processes", "1", "cli.py"], CPU, 0),
        ([*ACCELERATE, "cli.py"], CPU, 0),
        (["bash"], CPU, 0),
        ([], CPU, 0),
        ([*ACCELERATE, "--num_processes", "2", "cli.py"], {"ACCELERATE_USE_CPU": "False"}, 0),
        ([*ACCELERATE, "--num_processes", "2", "cli.py"], {}, 0),
        ([*ACCELERATE, "--num_processes", "2", "cli.py"], {**CPU, "RANK": "1"}, 0),
        ([*ACCELERATE, "--num_processes", "2", "cli.py"], {**CPU, "OMPI_COMM_WORLD_RANK": "0"}, 0),
    ],
)
def test_only_what_accelerate_left_out_is_missing(launcher: list[str], environment: dict[str, str], number: int):
    assert missing_processes(launcher, environment) == number
