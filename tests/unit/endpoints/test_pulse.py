"""pulse: does what is overdue, and outlives what it does."""

from __future__ import annotations

import pytest
from django.db import OperationalError

from endpoints import pulse as pulses
from endpoints.pulse import Duty, Pulse


@pytest.fixture(autouse=True)
def _no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulses, "close_old_connections", lambda: None)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def nothing() -> None:
    pass


def test_it_does_only_what_nobody_else_has_done_in_time() -> None:
    clock, did = Clock(), []
    pulse = Pulse({"a": Duty(3.0, lambda: did.append("a")), "b": Duty(1.5, lambda: did.append("b"))}, clock)
    assert pulse.beat() == ["a", "b"]
    assert pulse.beat() == []
    clock.now += 2
    pulse.done("b")
    assert pulse.beat() == []
    clock.now += 1.1
    assert pulse.beat() == ["a"]
    clock.now += 0.5
    assert pulse.beat() == ["b"]
    assert did == ["a", "b", "a", "b"]


@pytest.mark.parametrize("error", [OperationalError("gone"), RuntimeError("defect")])
def test_what_fails_is_tried_again_and_hinders_nobody(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    clock, did = Clock(), []

    def fail() -> None:
        raise error

    pulse = Pulse({"bad": Duty(1.0, fail), "good": Duty(1.0, lambda: did.append(1))}, clock)
    for _ in range(3):
        assert pulse.beat() == ["bad", "good"]
        clock.now += 2
    assert len(did) == 3
    assert caplog.records


def test_an_unknown_task_is_none_of_its_business() -> None:
    pulse = Pulse({"a": Duty(1.0, nothing)}, Clock())
    pulse.done("other.task")
    assert pulse.beat() == ["a"]


def test_its_thread_stops_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(pulses, "TICK_S", 0.001)
    seen = threading.Event()
    pulse = Pulse({"a": Duty(0.0, seen.set)})
    pulse.start()
    assert seen.wait(5)
    pulse.stop()
    assert not pulse._thread.is_alive()
