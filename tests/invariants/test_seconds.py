"""Where the wall clock goes: every moment to one phase, and nothing is left over."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.clocks import Clock
from support.small_run import BATCH, chooser, made_up, trainer

from robustcords.methods import adversarial
from robustcords.runtime import collectives, stopwatch
from robustcords.runtime.stopwatch import PHASES, Stopwatch
from robustcords.training.callbacks import validation
from robustcords.training.config import AveragingConfig


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stopwatch, "time", made)
    return made


def test_every_moment_counts_towards_the_phase_begun_last(clock: Clock):
    watch = Stopwatch(torch.device("cpu"))
    for phase, seconds in (("data", 1), ("attack", 2), ("data", 4), ("update", 8)):
        watch.begin(phase)
        clock.now += seconds
    assert watch.seconds() == dict.fromkeys(PHASES, 0) | {"data": 5, "attack": 2, "update": 8, "total": 15}


def test_a_lap_ends_one_count_and_begins_the_next_at_the_same_instant(clock: Clock):
    watch = Stopwatch(torch.device("cpu"))
    watch.begin("logging")
    clock.now += 1
    assert watch.lap()["logging"] == 1
    clock.now += 2
    assert watch.seconds() == dict.fromkeys(PHASES, 0) | {"logging": 2, "total": 2}


def test_an_interrupted_count_goes_on(clock: Clock):
    watch = Stopwatch(torch.device("cpu"))
    watch.begin("attack")
    clock.now += 3
    kept = watch.seconds()
    clock.now += 100  # nobody was there
    watch.restart("checkpoint")
    clock.now += 1  # reading the checkpoint
    watch.add(kept)
    watch.begin("update")
    clock.now += 4
    assert watch.seconds() == dict.fromkeys(PHASES, 0) | {"attack": 3, "checkpoint": 1, "update": 4, "total": 8}


def test_a_gpu_is_waited_for_only_when_seconds_are_read(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    """A device whose work takes as long as is put into its queue, and which knows when it came to each event."""
    queue, waits = [clock.now], []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: list[float]) -> None:
            stream[0] = self.at = max(stream[0], clock.now)

        def elapsed_time(self, end: Event) -> float:
            assert waits
            return 1000 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: queue)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    watch = Stopwatch(torch.device("cuda"))
    for phase, launched in (("attack", 5), ("update", 3)):
        watch.begin(phase)
        queue[0] += launched
    watch.begin("checkpoint")
    clock.now += 9  # while the host writes a file, the device ends its work
    assert not waits
    assert watch.seconds() == dict.fromkeys(PHASES, 0) | {"attack": 5, "update": 3, "checkpoint": 1, "total": 9}
    assert len(waits) == 1


def test_each_part_of_a_run_counts_where_it_belongs(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    made = trainer(
        selector=chooser("adv-glister", select_every=2, epochs=4),
        validation=made_up(12, seed=1),
        settings={"epochs": 4, "validate_every": 4, "averaging": AveragingConfig(), "accumulation": 2},
        run=tmp_path / "run",
    )
    assert made.run and made.averaging and made.selector and made.schedule is None
    steps = -(-made.selector.budget // BATCH)
    slow = SimpleNamespace(data=1, attack=2, update=4, communication=8, averaging=16, selection=32, validation=64)
    clock.slow(monkeypatch, made.loader, "load", slow.data)
    clock.slow(monkeypatch, adversarial, "attack_batch", slow.attack)
    clock.slow(monkeypatch, made.step, "backward", slow.update)
    clock.slow(monkeypatch, collectives, "share_buffers", slow.communication)
    clock.slow(monkeypatch, made.averaging, "update", slow.averaging)
    clock.slow(monkeypatch, made.selector, "subset", slow.selection)
    clock.slow(monkeypatch, validation, "robust_accuracy", slow.validation)
    clock.slow(monkeypatch, made.run.checkpoints, "save", 128)
    clock.slow(monkeypatch, made.run, "add_row", 256)
    clock.slow(monkeypatch, made.loader, "order", 512)
    start = clock.now
    made.fit()
    rows = [row["seconds"] for row in made.run.rows()]
    everywhere = {
        "data": 512 + steps * slow.data,
        "attack": steps * slow.attack,
        "update": 2 * steps * slow.update,
        "communication": steps * slow.communication,
        "averaging": steps * slow.averaging,
        "selection": slow.selection,
        "validation": 0,
        "planning": 0,
    }
    for epoch, row in enumerate(rows):
        expected = everywhere | {"checkpoint": 128 * (epoch > 0), "logging": 256 * (epoch > 0)}
        if epoch == len(rows) - 1:
            expected["validation"] = slow.validation
        assert row == expected | {"total": sum(expected.values())}
    assert sum(row["total"] for row in rows) == clock.now - start - 128 - 256  # the last line, and what follows it
