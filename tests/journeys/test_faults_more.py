"""Rows 2, 14, 38 and 40 of the fault matrix through the whole platform: kills, rolling restarts, neighbours, a busy machine.

What is asserted are counts and answers; times are printed, for the machine that runs this may be busy itself.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import pytest

from tests.journeys.conftest import write_echo
from tests.journeys.test_faults import another_gateway
from tests.support.house import House, until

pytestmark = [pytest.mark.fault, pytest.mark.timeout(240), pytest.mark.xdist_group("house")]


def body(value: float) -> dict[str, Any]:
    return {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [value, 1, 2, 3]}]}


@dataclass
class Clients:
    """Keep-alive clients that each ask, check the answer and ask again; one that finds nobody listening goes to the
    next address, as behind a load balancer.
    """

    urls: list[str]
    key: str
    count: int
    pause_s: float = 0.0
    most: int = 10**9
    asked: int = 0
    answered: int = 0
    latencies_s: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    may_shed: bool = False
    shed: int = 0

    def __enter__(self) -> Self:
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request never ended"

    def _next(self) -> int:
        with self._lock:
            self.asked += self.asked < self.most
            return self.asked

    def _run(self, number: int) -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {self.key}"}, timeout=30) as client:
            turn = number
            while not self._stop.is_set() and self.asked < self.most:
                value = float(self._next())
                began = time.monotonic()
                try:
                    answer = client.post(self.urls[turn % len(self.urls)], json=body(value))
                except httpx.ConnectError:
                    turn += 1
                    try:
                        answer = client.post(self.urls[turn % len(self.urls)], json=body(value))
                    except httpx.HTTPError as error:
                        self.failed.append(repr(error))
                        continue
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                    continue
                self._look(answer, value, time.monotonic() - began)
                self._stop.wait(self.pause_s)

    def _look(self, answer: httpx.Response, value: float, took_s: float) -> None:
        if answer.status_code == 200 and answer.json()["outputs"][0]["data"][0] == 2 * value:
            with self._lock:
                self.answered += 1
                self.latencies_s.append(took_s)
        elif self.may_shed and answer.headers.get("x-error-code") == "overloaded":
            with self._lock:
                self.shed += 1
        else:
            self.failed.append(f"{answer.status_code} {answer.text[:200]}")

    @property
    def p50_ms(self) -> float:
        return statistics.median(self.latencies_s) * 1e3

    @property
    def p99_ms(self) -> float:
        return sorted(self.latencies_s)[int(0.99 * len(self.latencies_s))] * 1e3


def url_of(house: House, endpoint: str, base: str = "") -> str:
    return f"{base or house.gateway_url}/v2/models/{endpoint}/infer"


def serving(house: House, folder: Path, name: str, replicas: int, settings: dict[str, Any], **plan: Any) -> int:
    """An endpoint of an echo model that doubles; its version's number."""
    version = house.upload(name, write_echo(folder / name, factor=2.0, **plan), **settings)
    house.deploy(name, version["number"], replicas=replicas)
    until(f"{replicas} of {name}", lambda: len(house.ready_replicas(name)) == replicas, 60, 0.1)
    house.serves(name, body(0.0))
    return int(version["number"])


@pytest.fixture
def serve(house: House, tmp_path: Path) -> Iterator[Callable[..., str]]:
    made: dict[str, int] = {}

    def make(name: str, replicas: int = 1, settings: dict[str, Any] | None = None, **plan: Any) -> str:
        made[name] = serving(house, tmp_path, name, replicas, settings or {}, **plan)
        return name

    yield make
    for name, number in made.items():
        house.scale(name, number, 0)


def retries(house: House, endpoint: str) -> float:
    text = httpx.get(f"{house.gateway_url}/metrics", headers={"Authorization": f"Bearer {house.key}"}).text
    lines = [
        one for one in text.splitlines() if one.startswith("serinus_request_retries_total") and f'"{endpoint}"' in one
    ]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_row_2_one_of_two_replicas_killed_with_eight_in_flight_fails_none_of_300(
    house: House, serve: Callable[..., str]
) -> None:
    name = serve("pair", 2, sleep_ms=40)
    before = house.ready_replicas(name)
    with Clients([url_of(house, name)], house.key, 8, most=300) as clients:
        until("a third of them", lambda: clients.answered >= 100, 60, 0.005)
        os.kill(before[0]["pid"], signal.SIGKILL)
        until("all of them", lambda: clients.answered + len(clients.failed) >= 300, 60)
    assert not clients.failed, clients.failed[:3]
    assert clients.answered == 300, "each is answered once"
    assert 0 <= retries(house, name) <= 8
    until("both are back", lambda: len(house.ready_replicas(name)) == 2, 30)


def test_row_14_agent_replicas_and_gateways_restarted_in_turn_fail_none_of_2000(
    house: House, serve: Callable[..., str]
) -> None:
    name = serve("rolling", 2, sleep_ms=2)
    with another_gateway(house) as second:
        until("it serves", lambda: _serves(second, name, house.key), 30, 0.2)
        urls = [url_of(house, name), url_of(house, name, second)]
        with Clients(urls, house.key, 8, pause_s=0.05) as clients:
            until("they are at work", lambda: clients.answered > 200, 60)
            house.remote().stopProcess("agent", True)
            house.up_again("agent")
            for row in house.ready_replicas(name):
                house.ok("POST", f"/api/replicas/{row['id']}/restart/")
                until("its successor is ready", lambda row=row: _replaced(house, name, row), 60, 0.2)
            house.remote().stopProcess("gateway", True)
            house.up_again("gateway")
            until("the gateway serves again", lambda: _serves(house.gateway_url, name, house.key), 30, 0.2)
            process = another_gateway.process  # type: ignore[attr-defined]
            process.terminate()
            assert process.wait(40) == 0
            until("two thousand", lambda: clients.answered + len(clients.failed) >= 2000, 120)
    assert not clients.failed, (len(clients.failed), clients.failed[:3])
    assert clients.answered >= 2000


def _serves(base: str, name: str, key: str) -> bool:
    try:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(url_of(None, name, base), json=body(1.0), headers=headers, timeout=10).status_code == 200  # type: ignore[arg-type]
    except httpx.HTTPError:
        return False


def _replaced(house: House, name: str, row: dict[str, Any]) -> bool:
    rows = house.ready_replicas(name)
    return len(rows) == 2 and all(one["pid"] != row["pid"] and one["pid"] for one in rows)


def test_row_38_a_neighbour_of_a_saturated_model_loses_nothing(house: House, serve: Callable[..., str]) -> None:
    loud = serve("loud", settings={"queue_limit": 16}, sleep_ms=20)
    quiet = serve("quiet", sleep_ms=5)
    with Clients([url_of(house, quiet)], house.key, 1, pause_s=0.1) as alone:
        until("some alone", lambda: alone.answered >= 30, 30)
    with Clients([url_of(house, loud)], house.key, 24, may_shed=True) as flood:
        until("it is saturated", lambda: flood.answered > 50, 30)
        with Clients([url_of(house, quiet)], house.key, 1, pause_s=0.1) as beside:
            until("some beside", lambda: beside.answered + len(beside.failed) >= 30, 60)
    assert not beside.failed, beside.failed[:3]
    assert not flood.failed, flood.failed[:3]
    print(
        f"\nrow 38: p50 {alone.p50_ms:.1f} -> {beside.p50_ms:.1f} ms, p99 {alone.p99_ms:.1f} -> {beside.p99_ms:.1f} ms"
    )


@pytest.mark.alone
def test_row_40_two_busy_loops_fail_nothing_and_waiting_threads_do_not_spin(
    house: House, serve: Callable[..., str]
) -> None:
    name = serve("contended", sleep_ms=2)
    (row,) = house.ready_replicas(name)
    standby = psutil.Process(row["pid"]).ppid()  # whose environment it has; its own was overwritten by its title
    told = Path(f"/proc/{standby}/environ").read_bytes().split(b"\0")
    assert b"OMP_WAIT_POLICY=PASSIVE" in told, "which is what keeps the contention bounded"
    with Clients([url_of(house, name)], house.key, 2, pause_s=0.02, most=100) as calm:
        until("calm", lambda: calm.answered + len(calm.failed) >= 100, 60)
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        with Clients([url_of(house, name)], house.key, 2, pause_s=0.02, most=100) as busy:
            until("busy", lambda: busy.answered + len(busy.failed) >= 100, 120)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert not calm.failed + busy.failed
    print(f"\nrow 40: p50 {calm.p50_ms:.1f} ms calm, {busy.p50_ms:.1f} ms beside two busy loops")
