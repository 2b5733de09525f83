"""Signals stop a run after its step; a launcher's copy of the same signal does not count as a second one."""

from __future__ import annotations

import signal

import pytest

from robustcords.errors import Interrupted
from robustcords.runtime import interruption
from robustcords.runtime.interruption import Interruption


@pytest.fixture(autouse=True)
def _as_python_starts():
    """Has SIGINT raise KeyboardInterrupt, which processes that tests are shared out among do not leave so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    moments = [0.0]
    monkeypatch.setattr(interruption.time, "monotonic", lambda: moments[0])
    return moments


def test_a_signal_is_noted_and_raised_where_it_is_asked_for(clock: list[float]):
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as asked:
        asked.check()
        asked.check_together()
        signal.raise_signal(signal.SIGINT)
        clock[0] += 0.5
        signal.raise_signal(signal.SIGTERM)
        assert asked.requested == signal.SIGINT
        for check in (asked.check, asked.check_together):
            with pytest.raises(Interrupted) as stopped:
                check()
            assert stopped.value.status == 128 + signal.SIGINT
    signal.raise_signal(signal.SIGTERM)  # a copy that was on its way
    clock[0] += 10
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_without_a_signal_the_earlier_handlers_are_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption():
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_later_second_one_ends_at_once(clock: list[float]):
    with Interruption() as asked:
        signal.raise_signal(signal.SIGINT)
        clock[0] += 10
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert asked.requested == signal.SIGINT
