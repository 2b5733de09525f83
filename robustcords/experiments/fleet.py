"""Many runs, each in its own process and directory, as many at a time as there are devices.

What is done is skipped and what was interrupted is resumed, so the same call again finishes what another one began.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from robustcords.errors import UserError
from robustcords.experiments.run import differing_keys, finished
from robustcords.recipe.recipe import Recipe, dump, load
from robustcords.report.run_progress import trained_share
from robustcords.report.run_report import Report
from robustcords.runtime.interruption import Interruption
from robustcords.runtime.progress import Board, duration
from robustcords.runtime.warm import Started, WarmProcess
from robustcords.storage.files import write_atomic
from robustcords.storage.run_directory import RunDirectory, has_run

_POLL_S = 0.2
_USER_ERROR = 2
"""The exit status of a run whose input is at fault."""
WORKSHOP = ".fleet"
"""The folder, next to the runs, of their recipes and logs."""
_TAIL = 4096


@dataclass(frozen=True)
class Task:
    """One run to make.

    Attributes:
        name: of its directory.
        recipe: what it does.
    """

    name: str
    recipe: Recipe

    @property
    def size(self) -> float:
        """A guess at its training time for the ETA alone: in full epochs, or else in seconds or steps."""
        train, selector = self.recipe.train, self.recipe.selector
        if train.epochs:
            return train.epochs * (selector.fraction if selector else 1.0)
        if train.budget:
            return train.budget.total_seconds()
        return float(sum(train.steps) if isinstance(train.steps, list) else train.steps or 1)


@dataclass
class Job:
    """A task and how far it is.

    Attributes:
        task: what is to be done.
        path: its run directory.
        state: ``"waiting"``, ``"running"``, ``"done"``, ``"skipped"`` (done before) or ``"failed"``.
        note: what it said last.
        seconds: how long it has been running, or ran.
        training: how long of that it was training; the rest is evaluation.
        before: `share` when it was started, of a run that is resumed.
    """

    task: Task
    path: Path
    state: str = "waiting"
    note: str = ""
    seconds: float = 0.0
    training: float = 0.0
    process: Started | None = None
    device: str = ""
    begun: float = 0.0
    before: float = 0.0

    @property
    def share(self) -> float:
        """How much of its training is done, in [0, 1]."""
        return trained_share(self.path / "metrics.jsonl", self.task.recipe.train.epochs)

    @property
    def is_done(self) -> bool:
        """Whether the run is whole, by this call or by one before."""
        return self.state in {"done", "skipped"}


def slots(jobs: int | None) -> list[dict[str, str]]:
    """Returns, for each run at a time, the environment that gives it a device of its own.

    Args:
        jobs: how many at a time; None for one on each GPU, or one where there is none.
    """
    import torch

    cards = torch.cuda.device_count()
    visible = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
    names = visible or [str(number) for number in range(cards)]
    count = jobs or max(1, cards)
    if cards:
        return [{"CUDA_VISIBLE_DEVICES": names[number % cards]} for number in range(count)]
    if count == 1:
        return [{}]
    return [{"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count))} for _ in range(count)]


def start(recipe: Path, output: Path, log: Path, place: Mapping[str, str]) -> Started:
    """Makes a run, or resumes it, in a process of its own.

    Args:
        recipe: its file.
        output: its directory.
        log: the file to which progress and errors are appended.
        place: what its environment has of its own, see `slots`.
    """
    arguments = ["run", str(recipe), "--output", str(output), "--resume"]
    if "CUDA_VISIBLE_DEVICES" not in place:
        return WarmProcess(arguments, log, place)
    with log.open("ab") as file:
        # A session of its own: Ctrl-C reaches this process alone, which then asks the runs to stop, once.
        return subprocess.Popen(
            [sys.executable, "-m", "robustcords", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            env={**os.environ, **place},
            start_new_session=True,
        )


@dataclass
class Fleet:
    """Makes runs below one folder.

    Args:
        folder: each run's directory is in here, named as its task is.
        places: the environment of each run at a time, see `slots`.
        board: where progress is shown.
        interruption: asked again and again whether to stop.

    Attributes:
        jobs: of all calls of `run`.
    """

    folder: Path
    places: Sequence[Mapping[str, str]]
    board: Board
    interruption: Interruption
    jobs: list[Job] = field(default_factory=list)

    @property
    def at_fault(self) -> bool:
        """Whether others were not begun because a run's input was at fault."""
        return any(job.state == "waiting" for job in self.jobs)

    def run(self, tasks: Sequence[Task]) -> list[Job]:
        """Makes all runs that are not done, and returns how each one ended, in order.

        A run that fails keeps none of the others from being made, unless its input is at fault (exit status 2): what
        is at fault there is so in most of the others too, so those that have not begun stay as they are.

        Raises:
            UserError: a directory holds a run of another recipe.
            Interrupted: a signal came. Then, as after any other error, the runs have been asked to stop, and have
                written their checkpoints.
        """
        jobs = [self._job(task) for task in tasks]
        self.jobs += jobs
        waiting = [job for job in jobs if job.state == "waiting"]
        free = [dict(place) for place in self.places]
        running: list[tuple[Job, dict[str, str]]] = []
        try:
            while waiting or running:
                self.interruption.check()
                while waiting and free:
                    place = free.pop()
                    running.append((waiting.pop(0), place))
                    self._start(*running[-1])
                for job, place in list(running):
                    if self._look(job):
                        running.remove((job, place))
                        free.append(place)
                        if waiting and job.process and job.process.poll() == _USER_ERROR:
                            self.board.say(f"{len(waiting)} not started: the input of {job.task.name} is invalid")
                            waiting.clear()
                self.board.show(self.table)
                time.sleep(_POLL_S)
        except BaseException:  # whatever ends this process must not leave runs behind that nobody looks after
            self._stop([job for job, _ in running])
            raise
        finally:
            self.board.show(self.table)
        return jobs

    def _job(self, task: Task) -> Job:
        job = Job(task, self.folder / task.name)
        if has_run(job.path):
            if different := differing_keys(load(job.path / "recipe.toml", of_run=True), task.recipe):
                what = f"holds a run of another recipe; what differs: {', '.join(different)}"
                raise UserError(f"{job.path}: {what}; name another folder with --output")
            if finished(job.path, task.recipe):
                job.state = "skipped"
        return job

    def _start(self, job: Job, place: Mapping[str, str]) -> None:
        workshop = self.folder / WORKSHOP
        workshop.mkdir(parents=True, exist_ok=True)
        recipe = workshop / f"{job.task.name}.toml"
        write_atomic(recipe, dump(job.task.recipe))
        job.state, job.begun, job.device = "running", time.monotonic(), place.get("CUDA_VISIBLE_DEVICES", "")
        job.before = job.share
        self.log(job).touch()  # a process that has just begun may not have made it yet
        job.process = start(recipe, job.path, self.log(job), place)
        self.board.say(f"{job.task.name}: started")

    def _look(self, job: Job) -> bool:
        """Brings a job up to date; returns whether it has ended."""
        assert job.process is not None
        status = job.process.poll()
        job.seconds = time.monotonic() - job.begun
        if job.share < 1:
            job.training = job.seconds
        lines = self._last_lines(job)
        job.note = lines[-1] if lines else ""
        if status is None:
            return False
        job.state = "failed" if status else "done"
        if status:  # what went wrong, also where a run that outlived its sweep writes into the same file
            job.note = next((line for line in reversed(lines) if line.startswith("error: ")), job.note)
        else:
            job.note = _result(job.path)
        cause = f": {job.note}" if job.note else ""
        outcome = f"failed with status {status}{cause} ({self.log(job)})" if status else f"done  {job.note}"
        self.board.say(f"{job.task.name}: {outcome}  {duration(job.seconds)}")
        return True

    def _stop(self, jobs: Sequence[Job]) -> None:
        """Asks runs to stop, and waits until they have written their checkpoints."""
        for job in jobs:
            if job.process:
                job.process.send_signal(signal.SIGTERM)
        self.board.say(f"stopping {len(jobs)} run{'s' if len(jobs) != 1 else ''}: each writes a checkpoint first")
        for job in jobs:
            if job.process:
                job.process.wait()
                job.state = "waiting"

    def log(self, job: Job) -> Path:
        """Returns the file that a run's progress and errors go to."""
        return self.folder / WORKSHOP / f"{job.task.name}.log"

    def _last_lines(self, job: Job) -> list[str]:
        with self.log(job).open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
            return [line.strip() for line in log.read().decode(errors="replace").splitlines()]

    def remaining(self) -> float | None:
        """Returns a guess at the seconds that are left, or None before there is anything to guess from.

        Training is guessed from all epochs that have been seen, evaluation from those that have ended.
        """
        size = sum(job.task.size * (job.share - job.before) for job in self.jobs if job.training)
        if not size:
            return None
        open_jobs = [job for job in self.jobs if job.state in {"waiting", "running"}]
        rate = sum(job.training for job in self.jobs) / size
        ended = [job.seconds - job.training for job in self.jobs if job.state == "done"]
        each = sum(ended) / len(ended) if ended else 0.0
        left = [
            rate * job.task.size * (1 - job.share) + max(0.0, each - (job.seconds - job.training)) for job in open_jobs
        ]
        return max(sum(left) / len(self.places), *left, 0.0)  # in the end all wait for the longest

    def table(self) -> Table:
        """Returns the state of all runs."""
        table = Table(*("run", "state", "epochs", "time", "last"))
        for job in self.jobs:
            epochs, share = job.task.recipe.train.epochs, job.share
            device = f" on {job.device}" if job.device else ""
            done = f"{round(share * epochs)}/{epochs}" if epochs else f"{share:.0%}"
            row = [job.task.name, job.state + device, done, duration(job.seconds)]
            table.add_row(*row, job.note)
        left = self.remaining()
        ended = sum(job.is_done for job in self.jobs)
        table.caption = f"{ended} of {len(self.jobs)} done" + (f", about {duration(left)} to go" if left else "")
        return table


def run_all(tasks: Sequence[Task], folder: Path, jobs: int | None) -> list[Job]:
    """Makes runs below a folder, showing progress; see `Fleet.run`.

    Args:
        tasks: what to run.
        folder: where each run's directory is.
        jobs: how many at a time; None for one on each GPU, or one where there is none.
    """
    with Interruption() as interruption, Board() as board:
        return Fleet(folder, slots(jobs), board, interruption).run(tasks)


def failures(jobs: Sequence[Job]) -> list[str]:
    """Returns a line for each run that failed."""
    return [f"{job.path}: failed: {job.note}" for job in jobs if job.state == "failed"]


def _result(path: Path) -> str:
    """Returns a finished run's accuracies in a few words."""
    evaluation = Report.read(RunDirectory(path).report).evaluation
    if not evaluation:  # of "best" alone, without validation
        return "nothing evaluated"
    name, result = list(evaluation.items())[-1]
    parts = [f"{each.what} {each.accuracy:.1%}" for each in result.measurements if each.accuracy is not None]
    return f"{name}: {', '.join(parts)}"
