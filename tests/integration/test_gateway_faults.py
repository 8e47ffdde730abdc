"""What a gateway promises when replicas, Valkey or itself go away."""

import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from inference.protocol import routes
from inference.protocol.messages import Fault
from inference.protocol.routes import VariantRoute
from tests.support import fake_replica
from tests.support.deadlines import accepted_for_s
from tests.support.gateway_house import MLP, ROOT, House, key, request, until


@pytest.fixture
def house():
    found = House()
    yield found
    found.close()


def ok(response):
    assert response.status_code == 200, response.text
    return response


def process(house, name, latency_ms=30, generation=1):
    """A fake replica in a process of its own, to be killed."""
    child = subprocess.Popen(
        [
            sys.executable,
            fake_replica.__file__,
            str(house.folder / f"{name}.sock"),
            name,
            str(generation),
            "1",
            str(latency_ms),
        ],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert child.stdout is not None
    assert child.stdout.readline().startswith(b"ready")
    return child


class Load:
    """Clients that keep asking until told to stop; every answer is kept."""

    def __init__(self, gateway, clients=4, pause_s=0.0):
        self.answers: list[httpx.Response | Exception] = []
        self._stop = threading.Event()
        self._gateway = gateway
        self._pause_s = pause_s
        self._pool = ThreadPoolExecutor(clients)
        self._running = [self._pool.submit(self._run) for _ in range(clients)]

    def _run(self):
        headers = {"Authorization": "Bearer ser_all.s2"}
        with httpx.Client(headers=headers, timeout=20) as client:
            while not self._stop.is_set():
                try:
                    self.answers.append(client.post(f"{self._gateway.url}/v2/models/mlp/infer", json=request()))
                except httpx.HTTPError as error:
                    self.answers.append(error)
                    time.sleep(0.02)
                self._stop.wait(self._pause_s)

    def stop(self):
        self._stop.set()
        for one in self._running:
            one.result(30)
        self._pool.shutdown()
        return self.answers

    def failed(self):
        return [one for one in self.stop() if not isinstance(one, httpx.Response) or one.status_code != 200]


def two(house):
    return [VariantRoute(1, "primary", 10_000, MLP, [house.route("a"), house.route("b")])]


def metric(gateway, name):
    lines = [line for line in gateway.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_a_replica_killed_under_load_fails_nobody(house):
    children = {name: process(house, name, latency_ms=100) for name in "ab"}
    house.publish(house.table(two(house)))
    gateway = house.gateway().wait_live().wait_ready()
    until(lambda: metric(gateway, "serinus_replicas_ready") == 2)
    load = Load(gateway, clients=8)
    until(lambda: len(load.answers) > 40)
    time.sleep(0.05)  # clients move in step: into the middle of their next wave
    children["a"].kill()
    until(lambda: len(load.answers) > 200)
    assert load.failed() == []
    retried = metric(gateway, "serinus_request_retries_total")
    assert 1 <= retried <= 8
    for child in children.values():
        child.kill()
        child.wait()


def test_the_only_replica_killed_and_restarted_loses_no_request(house):
    child = process(house, "r1")
    house.publish(house.table(timeout_ms=20_000))
    gateway = house.gateway().wait_live().wait_ready()
    load = Load(gateway, clients=6)
    until(lambda: len(load.answers) > 20)
    child.kill()
    child.wait()
    time.sleep(0.5)
    child = process(house, "r1")
    seen = len(load.answers)
    until(lambda: len(load.answers) > seen + 50, 20)
    assert load.failed() == []
    child.kill()
    child.wait()


def test_the_only_replica_gone_is_an_answer_inside_the_deadline(house):
    replica = house.replica(latency_s=1.0)
    house.publish(house.table(timeout_ms=1500))
    gateway = house.gateway().wait_live().wait_ready()
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(gateway.post) for _ in range(4)]
        until(lambda: len(replica.seen) == 4)
        house.run(replica.stop())
        found = [one.result() for one in waiting]
    assert {response.status_code for response in found} <= {503}
    assert all(response.elapsed.total_seconds() < 2 for response in found)


def test_retries_stop_when_their_budget_is_spent(house):
    replica = house.replica()
    replica.fault = Fault(0, "replica_lost", "")
    house.publish(house.table())
    gateway = house.gateway().wait_live().wait_ready()
    found = [gateway.post() for _ in range(60)]
    assert all(response.status_code == 503 and response.headers["retry-after"] for response in found)
    assert len(replica.seen) <= 60 + 32 + 6


def test_a_silent_replica_is_dropped_after_three_pings(house):
    silent, other = house.replica("a"), house.replica("b")
    house.publish(house.table(two(house), timeout_ms=20_000))
    gateway = house.gateway().wait_live().wait_ready()
    until(lambda: metric(gateway, "serinus_replicas_ready") == 2)
    silent.silent = True
    load = Load(gateway, clients=4, pause_s=0.02)
    until(lambda: metric(gateway, "serinus_request_retries_total") >= 1, 8)
    assert load.failed() == []
    assert silent.pings >= 3
    assert other.seen


def test_goodbye_sends_nobody_there_any_more(house):
    leaving, other = house.replica("a", latency_s=0.2), house.replica("b", latency_s=0.2)
    house.publish(house.table(two(house)))
    gateway = house.gateway().wait_live().wait_ready()
    until(lambda: metric(gateway, "serinus_replicas_ready") == 2)
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(gateway.post) for _ in range(6)]
        until(lambda: len(leaving.seen) + len(other.seen) == 6)
        house.loop.call_soon_threadsafe(leaving.goodbye)
        until(lambda: metric(gateway, "serinus_replicas_ready") == 1)
        before = len(leaving.seen)
        for _ in range(5):
            ok(gateway.post())
        assert all(one.result().status_code == 200 for one in waiting)
    assert len(leaving.seen) == before


def test_an_older_generation_of_a_replica_is_not_used(house):
    house.replica(generation=1)
    variants = [VariantRoute(1, "primary", 10_000, MLP, [house.route(generation=2)])]
    house.publish(house.table(variants, timeout_ms=300))
    gateway = house.gateway().wait_live()
    until(lambda: gateway.get("/v2/models/mlp").status_code == 200)
    assert gateway.post().status_code == 503
    assert house.replicas["r1"].seen == []


def test_a_revoked_key_is_refused_within_a_second(house):
    house.replica()
    house.publish(house.table())
    gateway = house.gateway().wait_live().wait_ready()
    ok(gateway.post(key="ser_one.s1"))
    house.publish(house.table(keys=[key("all", "s2", ["*"])]))
    assert accepted_for_s(lambda: gateway.post(key="ser_one.s1").status_code) < 1.0
    # the announcement may get lost: the poll finds the table too
    house.valkey.client.set(routes.TABLE_KEY, routes.encode(house.table(keys=[])))
    assert accepted_for_s(lambda: gateway.post().status_code) < 1.0


def test_the_table_never_goes_back_and_survives_a_flush(house):
    house.replica()
    house.publish(house.table(generation=7))
    gateway = house.gateway().wait_live().wait_ready()
    for generation in (7, 6, 1):
        house.publish(house.table(keys=[], generation=generation))
    house.valkey.client.flushall()
    house.valkey.client.set(routes.TABLE_KEY, b"{not a table")
    house.valkey.client.publish(routes.TABLE_CHANNEL, "x")
    time.sleep(1.2)
    ok(gateway.post())
    assert metric(gateway, "serinus_routing_generation") == 7
    house.publish(house.table(generation=8))
    until(lambda: metric(gateway, "serinus_routing_generation") == 8)


def test_valkey_killed_fails_nobody_and_its_return_is_noticed(house):
    house.replica()
    house.publish(house.table())
    gateway = house.gateway().wait_live().wait_ready()
    load = Load(gateway, clients=2, pause_s=0.02)
    house.valkey.kill()
    time.sleep(2)
    slowest = max(one.elapsed.total_seconds() for one in load.answers if isinstance(one, httpx.Response))
    house.valkey.start()
    house.publish(house.table(keys=[key("all", "s2", ["*"])]))
    until(lambda: metric(gateway, "serinus_routing_generation") == house.generation, 6)
    assert load.failed() == []
    assert slowest < 1.0
    until(lambda: house.valkey.client.xlen(routes.SAMPLES_STREAM) >= 2, 12)


def test_a_gateway_started_while_valkey_is_dead_serves_from_disk(house):
    house.replica()
    house.publish(house.table())
    gateway = house.gateway().wait_live().wait_ready()
    until((gateway.folder / "gateway" / "routes.json").exists)
    gateway.stop()
    house.valkey.kill()
    house.gateways.clear()
    again = house.gateway().wait_live().wait_ready()
    ok(again.post())
    assert again.folder == gateway.folder  # the same data folder


def test_without_any_table_it_is_live_but_not_ready(house):
    gateway = house.gateway().wait_live()
    assert gateway.get("/v2/health/ready").status_code == 400
    assert gateway.post().status_code == 401
    assert house.gateway(SERINUS_INSECURE="1").wait_live().post().status_code == 404


def test_term_under_load_drains(house):
    house.replica(latency_s=0.1)
    house.publish(house.table())
    gateway = house.gateway(SERINUS_GATEWAY_DRAIN_S="10").wait_live().wait_ready()
    load = Load(gateway, clients=4)
    until(lambda: len(load.answers) > 10)
    begin = time.monotonic()
    gateway.process.send_signal(signal.SIGTERM)
    until(lambda: gateway.get("/v2/health/ready").status_code == 400, 1)
    assert gateway.stop() == 0
    took = time.monotonic() - begin
    assert took < 5
    answers = load.stop()
    broken = [one for one in answers if not isinstance(one, (httpx.Response, httpx.ConnectError))]
    assert broken == []
    assert all(one.status_code == 200 for one in answers if isinstance(one, httpx.Response))
    assert "Traceback" not in gateway.log.read_text()


def test_what_outlives_the_drain_is_failed_before_its_end(house):
    house.replica(latency_s=30)
    house.publish(house.table(timeout_ms=30_000))
    gateway = house.gateway(SERINUS_GATEWAY_DRAIN_S="3").wait_live().wait_ready()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.post)
        until(lambda: house.replicas["r1"].seen)
        begin = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - begin < 10  # the replica would take thirty seconds
        assert waiting.result().status_code == 503


def test_killed_it_leaves_nothing_and_the_port_is_free(house):
    house.replica()
    house.publish(house.table())
    gateway = house.gateway().wait_live().wait_ready()
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text()
    assert children == ""
    gateway.stop(signal.SIGKILL)
    until(lambda: not house.replicas["r1"].peers)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", gateway.port))


def test_it_dies_with_its_parent(house):
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'inference', 'gateway'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    gateway = house.gateway()
    gateway.stop(signal.SIGKILL)
    env = {"PYTHONPATH": str(ROOT), "SERINUS_DATA_DIR": str(house.folder), "SERINUS_HTTP_PORT": str(gateway.port)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=env | {"SERINUS_DIE_WITH_PARENT": "1"}, cwd=ROOT
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    gateway.wait_live()
    parent.kill()
    parent.wait()
    until(lambda: not Path(f"/proc/{pid}").exists() or ") Z " in Path(f"/proc/{pid}/stat").read_text(), 3)


@pytest.mark.parametrize(
    ("name", "value"), [("SERINUS_HTTP_PORT", "99999"), ("SERINUS_INSECURE", "maybe"), ("SERINUS_MAX_BODY_BYTES", "-1")]
)
def test_a_bad_setting_stops_the_start_with_its_name(house, name, value):
    gateway = house.gateway(**{name: value})
    assert gateway.process.wait(20) == 2
    assert name in gateway.log.read_text()
