"""When a process that ``accelerate launch`` started has to start the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.cases import cases

from robustcords.runtime.launch import left_out, rank

CPU = {"ACCELERATE_USE_CPU": "True"}
ACCELERATE = ["python", "accelerate", "launch", "--cpu"]


@cases(
    ("launcher", "environment", "options"),
    [
        ([*ACCELERATE, "--num_processes", "3", "cli.py", "run", "x"], CPU, ["--standalone", "--nproc_per_node", "3"]),
        ([*ACCELERATE, "--num-processes=2", "cli.py"], CPU, ["--standalone", "--nproc_per_node", "2"]),
        ([*ACCELERATE, "--num_processes", "1", "cli.py"], CPU, []),
        ([*ACCELERATE, "cli.py"], CPU, []),
        (["bash"], CPU, []),
        ([], CPU, []),
        ([*ACCELERATE, "--num_processes", "2", "cli.py"], {"ACCELERATE_USE_CPU": "False"}, []),
        ([*ACCELERATE, "--num_processes", "2", "cli.py"], {}, []),
        ([*ACCELERATE, "--num_processes", "2", "cli.py"], {**CPU, "RANK": "1"}, []),
        ([*ACCELERATE, "--num_processes", "2", "cli.py"], {**CPU, "OMPI_COMM_WORLD_RANK": "0"}, []),
    ],
)
def test_only_what_accelerate_left_out_is_missing(launcher: list[str], environment: dict[str, str], options: list[str]):
    assert left_out(launcher, environment) == options


def test_several_machines_share_the_processes():
    words = "--num_processes 4 --num_machines 2 --machine_rank 1 --main_process_ip 10.0.0.1 --main_process_port 29501"
    expected = "--nnodes 2 --nproc_per_node 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 29501"
    assert left_out([*ACCELERATE, *words.split(), "cli.py"], CPU) == expected.split()


@cases(
    ("environment", "number"), [({}, 0), ({"RANK": "2"}, 2), ({"PMI_RANK": "1"}, 1), ({"OMPI_COMM_WORLD_RANK": "3"}, 3)]
)
def test_a_process_knows_its_number_before_torch_is_there(environment: dict[str, str], number: int):
    assert rank(environment) == number


ACCELERATE_DIES = """
import subprocess, sys
child = "import time; from robustcords.runtime import launch; launch.spread([]); print('ready', flush=True)"
child += "; time.sleep(60)"
subprocess.run([sys.executable, "-c", child])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such request")
def test_a_launcher_that_dies_asks_its_process_to_stop(tmp_path: Path):
    launcher = tmp_path / "accelerate.py"
    launcher.write_text(ACCELERATE_DIES)
    environment = {**os.environ, **CPU}
    process = subprocess.Popen([sys.executable, launcher], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.read() == "", "ends with the last process that writes to it"
    assert process.wait(10) == -signal.SIGTERM
