"""What a person can see of a running endpoint: its times, its log, its numbers, its limits; on the real platform."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.journeys.conftest import ECHO_BODY
from tests.support.house import PASSWORD, House, until

PARTS = ("console", "gateway", "network", "queue", "input", "compute", "output")


@pytest.fixture
def browser(house: House) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=house.console_url, headers={"Referer": house.console_url}, timeout=30) as found:
        token = found.get("/login/").text.split('name="csrfmiddlewaretoken" value="')[1].split('"')[0]
        found.post("/login/", data={"username": "admin", "password": PASSWORD, "csrfmiddlewaretoken": token})
        yield found


def test_the_try_it_form_tells_where_the_time_went(house: House, echo: str, browser: httpx.Client) -> None:
    told = {"X-CSRFToken": browser.cookies["csrftoken"]}
    answer = browser.post(f"/endpoints/{echo}/try/", json={"request": ECHO_BODY}, headers=told).json()
    times = {one["part"]: one["ms"] for one in answer["timeline"]}
    assert tuple(times) == PARTS
    assert times["compute"] >= 4.0  # the model sleeps 5 ms
    assert sum(times.values()) == pytest.approx(answer["latency_ms"], abs=0.5)


def test_log_stages_and_batches_are_live(house: House, echo: str, browser: httpx.Client) -> None:
    address = house.console_url.replace("http", "ws") + "/ws/console/"
    headers = {"Cookie": f"sessionid={browser.cookies['sessionid']}"}
    with connect(address, origin=house.console_url, additional_headers=headers) as socket:  # type: ignore[arg-type]

        def first(topic: str) -> Any:
            socket.send(json.dumps({"type": "subscribe", "topic": topic}))
            message = json.loads(socket.recv(20))
            socket.send(json.dumps({"type": "unsubscribe", "topic": topic}))
            return message.get("data", message)

        data = first(f"logs:endpoint:{echo}")
        assert data["missing"] == []
        assert data["points"], "the replica's log file is not where the console looks, or is empty"
        for _ in range(5):
            house.infer(echo, ECHO_BODY)

        def figures() -> Any:
            shown = first(f"endpoint:{echo}")
            return shown if shown["batches"] and any(point["stages"] for point in shown["points"]) else None

        shown = until("the stages are stored", figures, timeout_s=20, every_s=0.5)
        stages = next(point["stages"] for point in reversed(shown["points"]) if point["stages"])
        assert stages[2] >= 4.0
        assert shown["batches"][0][0] == 1
        assert shown["queue_depth"] >= 0


def test_a_key_is_limited_by_the_command_line(house: House, echo: str) -> None:
    made = json.loads(
        house.cli("keys", "create", "slow", "--endpoint", echo, "--requests-per-s", "0.1", "--json").stdout
    )
    status = lambda: house.infer(echo, ECHO_BODY, key=made["token"])  # noqa: E731
    until("the key is known", lambda: status().status_code in {200, 429})
    refused = until("the key is limited", lambda: (found := status()).status_code == 429 and found)
    assert 1 <= int(refused.headers["retry-after"]) <= 10
    house.cli("keys", "limit", f"ser_{made['id']}", "--requests-per-s", "0")
    until("the bound is gone", lambda: [status().status_code for _ in range(5)] == [200] * 5)


def test_a_limit_that_is_set_in_the_console_holds_at_the_gateway(
    house: House, echo: str, browser: httpx.Client
) -> None:
    """From no bound to one and back, without a restart and without a new key."""
    made = house.ok("POST", "/api/keys/", {"name": "tuned", "endpoints": [echo]})
    status = lambda: house.infer(echo, ECHO_BODY, key=made["token"]).status_code  # noqa: E731
    until("the key is known", lambda: status() == 200)
    for rows_per_s, seen in (("0.05", 429), ("", 200)):
        told = {"X-CSRFToken": browser.cookies["csrftoken"]}
        rates = {"requests_per_s": "", "rows_per_s": rows_per_s}
        assert browser.post(f"/keys/{made['id']}/rates/", data=rates, headers=told).status_code == 302
        until("the gateway knows it", lambda seen=seen: [status() for _ in range(3)][1:] == [seen] * 2, 20)
