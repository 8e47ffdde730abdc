"""The agent's thread: it outlives whatever a pass does, and doubled wake-ups collapse."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from django.db import OperationalError

from inference.errors import ServerError
from worker import agent as agents
from worker import permanent
from worker.agent import BUSY_S, Agent
from worker.permanent import AgentThread


class Passes:
    """Stands where an agent is: counts passes, and notices two at once."""

    def __init__(self, act: Callable[[int], float]) -> None:
        self.host, self.count, self.act = "a", 0, act
        self.at_once = self.most_at_once = 0
        self.each = threading.Condition()

    def pass_once(self) -> float:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return self.act(self.count)
        finally:
            self.at_once -= 1
            with self.each:
                self.count += 1
                self.each.notify_all()

    def wait(self, count: int) -> None:
        with self.each:
            assert self.each.wait_for(lambda: self.count >= count, 5), self.count


@pytest.fixture(autouse=True)
def _no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permanent, "close_old_connections", lambda: None)


def running(act: Callable[[int], float]) -> tuple[Passes, AgentThread]:
    passes = Passes(act)
    thread = AgentThread(passes)  # type: ignore[arg-type]
    thread.start()
    return passes, thread


def test_it_passes_again_when_due() -> None:
    passes, thread = running(lambda _: 0.001)
    passes.wait(10)
    thread.stop()
    assert not thread.alive
    assert passes.most_at_once == 1


def test_a_wake_up_comes_before_the_time() -> None:
    passes, thread = running(lambda _: 3600)
    passes.wait(1)
    thread.wake()
    passes.wait(2)
    thread.stop()


def test_fifty_wake_ups_during_a_pass_make_one_more() -> None:
    begun, go = threading.Event(), threading.Event()

    def first_is_long(count: int) -> float:
        begun.set()
        go.wait(5)
        return 3600

    passes, thread = running(first_is_long)
    assert begun.wait(5)
    for _ in range(50):
        thread.wake()
    go.set()
    passes.wait(2)
    time.sleep(0.05)
    assert passes.count == 2
    thread.stop()


def test_no_defect_of_a_pass_ends_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permanent, "BUSY_S", 0.001)

    def fail(count: int) -> float:
        raise RuntimeError(f"defect {count}")

    passes, thread = running(fail)
    passes.wait(3)
    assert thread.alive
    thread.stop()


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[str]:
    told: list[str] = []

    def converge(*_: object) -> float:
        raise error

    monkeypatch.setattr(agents, "converge_once", converge)
    monkeypatch.setattr(agents.fleet, "record_problem", lambda host, problem: told.append(problem))
    return told


def test_a_missing_database_is_waited_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    told = failing(monkeypatch, OperationalError("gone"))
    agent = Agent("a", None)  # type: ignore[arg-type]
    assert [agent.pass_once() for _ in range(5)] == [BUSY_S] * 5
    assert told == []
    assert len([r for r in caplog.records if "the database is away" in r.message]) == 1


@pytest.mark.parametrize("error", [ConnectionRefusedError("no"), ServerError("supervisor says no"), TimeoutError()])
def test_a_missing_supervisor_is_told(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    told = failing(monkeypatch, error)
    assert Agent("a", None).pass_once() == BUSY_S  # type: ignore[arg-type]
    assert told[0].startswith("The supervisor of this host does not answer")


def test_passes_of_thread_and_message_never_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = [0], [0]

    def converge(*_: object) -> float:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.002)
        inside[0] -= 1
        return 0.0

    monkeypatch.setattr(agents, "converge_once", converge)
    agent = Agent("a", None)  # type: ignore[arg-type]
    threads = [threading.Thread(target=agent.pass_once) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
