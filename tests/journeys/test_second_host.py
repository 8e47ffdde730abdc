"""A second host joins, takes over while the first one drains, and leaves again; nobody notices."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.journeys.conftest import ECHO_BODY, write_echo
from tests.support.house import REPO, House, until
from tests.support.load import Load

pytestmark = pytest.mark.timeout(360)


def hosts_of(house: House, model: str) -> list[str]:
    rows = house.ok("GET", "/api/replicas/?page_size=200")["results"]
    return [row["host"] for row in rows if row["model"] == model and row["wanted"] == "run" and row["phase"] == "ready"]


@contextlib.contextmanager
def second_host(house: House) -> Iterator[subprocess.Popen[bytes]]:
    """`serinus worker`, until it has imported everything; afterwards the first host is open again."""
    command = [sys.executable, "-m", "serinus", "worker", "--name", "second"]
    worker = subprocess.Popen(command, env=house.environment, cwd=REPO, stderr=subprocess.DEVNULL)
    try:
        until("the second host stands by", lambda: alive(house), 90, 0.3)
        until("with everything imported", lambda: house.ok("GET", "/api/hosts/second/")["standby_ready"], 90, 0.3)
        yield worker
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
        house.api("POST", "/api/hosts/testhost/undrain/", {})
        house.api("POST", "/api/hosts/second/undrain/", {})


def alive(house: House) -> bool:
    answer = house.api("GET", "/api/hosts/second/")
    return answer.status_code == 200 and bool(answer.json()["alive"])


def test_replicas_move_to_a_second_host_and_back_without_a_failed_request(house: House, tmp_path: Path) -> None:
    version = house.upload("moving", write_echo(tmp_path / "m", factor=5.0))
    house.deploy("moving", version["number"])
    house.serves("moving", ECHO_BODY)
    with second_host(house), Load(f"{house.gateway_url}/v2/models/moving/infer", ECHO_BODY, house.key) as load:
        house.ok("POST", "/api/hosts/testhost/drain/", {})
        until("the second host serves", lambda: hosts_of(house, "moving") == ["second"], 40, 0.3)
        house.ok("POST", "/api/hosts/testhost/undrain/", {})
        house.ok("POST", "/api/hosts/second/drain/", {})
        until("the first host serves again", lambda: hosts_of(house, "moving") == ["testhost"], 40, 0.3)
    assert not load.failed, load.explain()
    house.scale("moving", version["number"], 0)


def agent_of(worker: subprocess.Popen[bytes]) -> psutil.Process:
    (found,) = [one for one in psutil.Process(worker.pid).children(recursive=True) if "agent@second" in one.cmdline()]
    return found


@contextlib.contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    """It wakes whatever happens meanwhile: who is to end it could not otherwise."""
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@pytest.mark.fault
@pytest.mark.alone
def test_row_6_a_frozen_hosts_replica_moves_and_the_agent_that_wakes_resurrects_nothing(
    house: House, tmp_path: Path
) -> None:
    """SIGSTOP for 30 s: its lease lapses, the replica serves elsewhere under a later generation, and stays there."""
    name = f"frozen-{time.time_ns() % 10**9}"  # a second try does not meet what the first one left
    version = house.upload(name, write_echo(tmp_path / "m", factor=5.0))
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(second_host(house))
        house.ok("POST", "/api/hosts/testhost/drain/", {})
        house.deploy(name, version["number"])
        stack.callback(house.scale, name, version["number"], 0)
        house.serves(name, ECHO_BODY)
        old = until("its row shows it", lambda: ready_on(house, name, "second"), 30, 0.2)
        house.ok("POST", "/api/hosts/testhost/undrain/", {})
        agent, replica = agent_of(worker), psutil.Process(old["pid"])
        load = stack.enter_context(Load(f"{house.gateway_url}/v2/models/{name}/infer", ECHO_BODY, house.key))
        with frozen(agent):
            began = time.monotonic()
            new = until("it serves elsewhere", lambda: ready_on(house, name, "testhost"), 90, 0.3)
            assert new["id"] == old["id"]
            assert new["generation"] > old["generation"]
            assert runs(replica), "nobody there can end it yet; gateways route to the newer generation"
            time.sleep(max(0.0, 30 - (time.monotonic() - began)))
        until("the old process is gone", lambda: not runs(replica), 60, 0.1)
        for _ in range(2):  # a pass that began before it woke, and one that saw all
            lease = house.ok("GET", "/api/hosts/second/")["lease_until"]
            until(
                "the agent that woke has made a pass",
                lambda lease=lease: house.ok("GET", "/api/hosts/second/")["lease_until"] != lease,
                60, 0.3,
            )  # fmt: skip
        assert [(row["host"], row["generation"]) for row in rows(house, name)] == [("testhost", new["generation"])]
        assert not runs(replica)
    assert load.outcomes
    assert not load.failed, load.explain()


def ready_on(house: House, model: str, host: str) -> dict[str, Any] | None:
    """The row of its one replica, once it is ready there."""
    found = rows(house, model)
    is_there = len(found) == 1 and (found[0]["host"], found[0]["phase"]) == (host, "ready") and found[0]["pid"]
    return found[0] if is_there else None


def rows(house: House, model: str) -> list[dict[str, Any]]:
    """Replicas of a model that are wanted."""
    found = house.ok("GET", "/api/replicas/?page_size=200")["results"]
    return [row for row in found if row["model"] == model and row["wanted"] == "run"]


def runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
