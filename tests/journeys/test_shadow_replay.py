"""A torch version and a JAX version of one model: requests recorded, copied and asked again, through the whole stack."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support import artifacts
from tests.support.house import House, until

pytestmark = pytest.mark.timeout(300)
REQUESTS = 60
STEER = """
from accounts.permissions import SYSTEM
from endpoints.models import Endpoint
from endpoints.steering import steer
from inference.protocol.routes import Comparison, Steering
steering = Steering("by-hand", 1, 2, mirror_bp=10_000, comparison=Comparison(tolerance=0.2)) if {on} else None
steer(endpoint=Endpoint.objects.get(name="seen"), weights={{1: 10_000, 2: 0}}, steering=steering, actor=SYSTEM, verb="x")
"""
REPORT = """
import json
from telemetry.shadow_report import shadow_report
print(json.dumps(shadow_report("seen", 2, {since}), default=str))
"""


@pytest.fixture(scope="module")
def seen(house: House, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("seen")
    artifacts.digits(folder)
    for number, framework in ((1, "torch"), (2, "jax")):
        assert house.upload("seen", folder / framework)["number"] == number
        house.deploy("seen", number)
    house.split("seen", v1=10_000, v2=0)
    return "seen"


def ask(house: House, count: int = REQUESTS) -> list[int]:
    """The digits that were read in as many images."""
    from sklearn.datasets import load_digits

    images, found = (load_digits().data[:count] / 16).astype(np.float32), []
    with httpx.Client(timeout=30, headers={"Authorization": f"Bearer {house.key}"}) as client:
        for image in images:
            given = {"name": "image", "datatype": "FP32", "shape": [1, 64], "data": image.tolist()}
            answer = client.post(f"{house.gateway_url}/v2/models/seen/infer", json={"inputs": [given]})
            assert answer.status_code == 200, answer.text
            assert answer.headers["X-Model-Version"] == "1"
            found.append(int(np.argmax(answer.json()["outputs"][0]["data"])))
    return found


def report(house: House, since: float) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(house.shell(REPORT.format(since=since)))
    return found


def test_copies_of_live_requests_are_compared_on_the_other_framework(house: House, seen: str) -> None:
    since = time.time()
    house.shell(STEER.format(on=True))
    try:
        until("copies are compared", lambda: ask(house, 5) and report(house, since)["compared"] > 0, 60, 1.0)
        ask(house)
        found = until("they are told", lambda: (told := report(house, since))["compared"] >= REQUESTS and told, 30, 1.0)
    finally:
        house.shell(STEER.format(on=False))
    assert found["candidate"]["errors"] == 0
    assert found["candidate"]["p50_ms"] > 0
    assert found["dropped"] <= found["compared"] * 0.1
    # two trainings of one small model: they agree on nearly every first place, not on the order of all others
    assert 0.05 < found["mean_distance"] < 0.4, found
    assert all(one["kind"] == "top_k" for one in found["worst"])


def test_recorded_requests_are_asked_again_and_judged(house: House, seen: str) -> None:
    house.ok("POST", "/api/endpoints/seen/recording/", {"share_bp": 10_000})

    def recorded() -> int:
        return int(house.ok("GET", "/api/endpoints/seen/recorded/")["requests"])

    until("recording begins", lambda: ask(house, 3) and recorded(), 60, 0.5)
    ask(house)
    until("requests are rows", lambda: ask(house, 5) and recorded() >= REQUESTS, 30, 0.5)
    house.ok("POST", "/api/endpoints/seen/recording/", {"share_bp": 0})
    for version, verdict in ((1, "passed"), (2, None)):
        wish = {"version": version, "rate_per_s": 100, "tolerance": 0.01, "requests": REQUESTS}
        house.ok("POST", "/api/endpoints/seen/replays/", wish)
        found = until("the replay ends", lambda: _ended(house), 90, 0.5)
        assert (found["version"], found["status"], found["requests"], found["errors"]) == (version, "done", REQUESTS, 0)
        assert found["compared"] == REQUESTS
        if verdict is not None:
            assert (found["verdict"], found["mean_distance"]) == (verdict, 0.0)
    assert found["verdict"] == "failed"
    assert 0.05 < found["mean_distance"] < 0.4
    assert len(found["worst"]) == 10
    assert house.ok("DELETE", "/api/endpoints/seen/recorded/")["deleted"] >= REQUESTS


def _ended(house: House) -> dict[str, Any] | None:
    newest: dict[str, Any] = house.ok("GET", "/api/endpoints/seen/replays/")[0]
    return newest if newest["status"] in {"done", "failed"} else None
