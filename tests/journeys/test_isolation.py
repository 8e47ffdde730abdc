"""One caller's trouble is that caller's alone: poison in a batch, input that kills, callers who leave (rows 18, 21, 22);
and every gateway of the platform takes a revoked key back within a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.journeys.conftest import ECHO_BODY, write_echo
from tests.support.deadlines import accepted_for_s
from tests.support.house import REPO, House, free_port, until
from tests.support.hygiene import check_refusal

pytestmark = pytest.mark.timeout(180)
POISON, KILLER = 666.0, 777.0


def body(value: float) -> dict[str, Any]:
    return {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [value, 1, 2, 3]}]}


def outputs(value: float) -> list[float]:
    return [2 * value, 2, 4, 6]


@pytest.fixture(scope="module")
def fragile(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An endpoint whose model raises at one value and dies at another; batches of up to 8, gathered for 50 ms."""
    faults = [{"value": POISON, "kind": "raise"}, {"value": KILLER, "kind": "abort"}]
    folder = write_echo(tmp_path_factory.mktemp("fragile") / "m", factor=2.0, sleep_ms=40, faults=faults)
    version = house.upload("fragile", folder, window_ms=50.0, max_batch_size=8)
    house.deploy("fragile", version["number"])
    house.serves("fragile", ECHO_BODY)
    yield "fragile"
    house.scale("fragile", version["number"], 0)


def test_row_21_one_poison_in_a_batch_of_eight_fails_alone(house: House, fragile: str) -> None:
    (before,) = house.ready_replicas(fragile)
    url = f"{house.gateway_url.replace('http', 'ws')}/v2/models/{fragile}/stream"
    for place in (0, 3, 7):
        values = [float(number) for number in range(8)]
        values[place] = POISON
        with connect(url, subprotocols=["serinus.v1", f"serinus.key.{house.key}"]) as stream:  # type: ignore[list-item]
            for number, value in enumerate(values):
                stream.send(json.dumps(body(value) | {"id": str(number)}))
            answers = {answer["id"]: answer for answer in (json.loads(stream.recv(timeout=20)) for _ in range(8))}
        failed = {name: answer["code"] for name, answer in answers.items() if "error" in answer}
        assert failed == {str(place): "poison_input"}
        for number, value in enumerate(values):
            if number != place:
                assert answers[str(number)]["outputs"][0]["data"] == outputs(value)
    (after,) = house.ready_replicas(fragile)
    assert after["pid"] == before["pid"], "the process is untouched"


def test_row_21_by_rest_it_is_a_typed_422(house: House, fragile: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda value: house.infer(fragile, body(value)), [1.0, 2.0, 3.0, POISON, 5.0, 6.0, 7.0, 8.0])
        )
    assert "exactly this input" in check_refusal(found.pop(3), 422)
    assert [answer.json()["outputs"][0]["data"][0] for answer in found] == [2.0, 4.0, 6.0, 10.0, 12.0, 14.0, 16.0]
    check_refusal(house.infer(fragile, body(POISON)), 422)


def test_row_22_an_input_that_kills_costs_its_neighbours_a_moment(house: House, echo: str, fragile: str) -> None:
    (before,) = house.ready_replicas(fragile)
    answer = house.infer(fragile, body(KILLER), **{"X-Request-Timeout-Ms": "15000"})
    assert "died on exactly this input twice" in check_refusal(answer, 422)
    assert house.infer(echo, ECHO_BODY).status_code == 200
    house.serves(fragile, ECHO_BODY, 30)
    after = until("rows show it", lambda: house.ready_replicas(fragile), 20)[0]
    assert after["id"] == before["id"]
    assert after["restarts"] - before["restarts"] <= 2, "the request itself is tried twice at most"
    for _ in range(3):
        check_refusal(house.infer(fragile, body(KILLER)), 422)
    assert house.infer(fragile, body(1.0)).status_code == 200
    (same,) = house.ready_replicas(fragile)
    assert same["pid"] == after["pid"], "it was not sent again"


def passes(house: House, name: str) -> int:
    """How often its model has run, by its replica's own count."""
    headers = {"Authorization": f"Bearer {house.key}"}
    found = httpx.get(f"{house.gateway_url}/v2/models/{name}/versions/1/stats", headers=headers).json()
    return int(found["model_stats"][0]["execution_count"])


def under_way(house: House) -> float:
    text = httpx.get(f"{house.gateway_url}/metrics", headers={"Authorization": f"Bearer {house.key}"}).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("serinus_requests_in_flight "))


def test_row_18_what_callers_left_behind_is_never_executed(house: House, tmp_path: Path) -> None:
    """One at a time, 600 ms each: ten callers go away, and nothing but what ran just then was run for them."""
    folder = write_echo(tmp_path / "m", factor=2.0, sleep_ms=600)
    version = house.upload("leaving", folder, max_batch_size=1, window_ms=0.0)
    house.deploy("leaving", version["number"])
    house.serves("leaving", ECHO_BODY)
    data = json.dumps(ECHO_BODY).encode()
    head = (
        f"POST /v2/models/leaving/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {house.key}\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    ).encode()
    before = passes(house, "leaving")
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", house.http_port)))
            peer.sendall(head + data)
        until("they are under way", lambda: under_way(house) >= 8, 10, 0.02)
    until("they are given up", lambda: under_way(house) == 0, 10, 0.02)
    assert house.infer("leaving", ECHO_BODY).status_code == 200
    assert passes(house, "leaving") - before <= 4, "of the ten, those that had their turn before they were given up"
    url = f"{house.gateway_url.replace('http', 'ws')}/v2/models/leaving/stream"
    before = passes(house, "leaving")
    with connect(url, subprotocols=[f"serinus.key.{house.key}"]) as stream:  # type: ignore[list-item]
        for number in range(10):
            stream.send(json.dumps(ECHO_BODY | {"id": str(number)}))
        until("they are under way", lambda: under_way(house) >= 8, 10, 0.02)
    until("they are given up", lambda: under_way(house) == 0, 10, 0.02)
    assert house.infer("leaving", ECHO_BODY).status_code == 200
    assert passes(house, "leaving") - before <= 4
    house.scale("leaving", version["number"], 0)


@pytest.fixture
def second_gateway(house: House) -> Iterator[str]:
    """The address of one more gateway, started as a person would start it."""
    port = free_port()
    log = (house.folder / "gateway2.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "serinus", "gateway", "--port", str(port)],
        env=house.environment | {"SERINUS_GRPC_PORT": "0"}, cwd=REPO, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def lives() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(url + "/v2/health/ready", timeout=2).status_code == 200
        return False

    try:
        until("the second gateway answers", lives, 30)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(40)
        log.close()


def test_every_gateway_refuses_a_revoked_key_within_a_second(house: House, echo: str, second_gateway: str) -> None:
    made = house.ok("POST", "/api/keys/", {"name": "short-lived", "endpoints": [echo]})

    with httpx.Client(headers={"Authorization": f"Bearer {made['token']}"}) as client:

        def status(url: str) -> int:
            return client.post(f"{url}/v2/models/{echo}/infer", json=ECHO_BODY).status_code

        doors = (house.gateway_url, second_gateway)
        until("both know the key", lambda: [status(url) for url in doors] == [200, 200], 20)
        house.ok("POST", f"/api/keys/{made['id']}/revoke/", {"reason": "a test"})
        assert accepted_for_s(lambda: max([status(url) for url in doors], key=lambda found: found == 200)) < 1.0
