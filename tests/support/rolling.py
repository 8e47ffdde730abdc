"""Rollouts on a running house: endpoints with a candidate, plans that end in seconds, load, and what came of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.journeys.conftest import write_echo
from tests.support.house import House, until
from tests.support.load import Load

MAGIC = 13.0
SHARE_BP = 2500
ENDED = ("succeeded", "rolled_back", "failed")
# A quarter of 40 requests a second, so that a verdict takes seconds where the default plans take minutes.
PLAN: dict[str, Any] = {
    "name": "quick",
    "steps": [
        {"kind": "set_weight", "weight_bp": SHARE_BP},
        {"kind": "analyze", "max_duration_s": 240, "min_duration_s": 2, "min_requests": 30},
        {"kind": "set_weight", "weight_bp": 10_000},
    ],
}
ROUGH = [{"metric": "error_rate", "margin": 0.05}, {"metric": "invalid_rate", "margin": 0.05}]


def body(number: int, every: int) -> dict[str, Any]:
    """Every so many requests hold the value that faults wait for."""
    last = MAGIC if every and number % every == 0 else 4.0
    return {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, number % 7, last]}]}


def stage(house: House, name: str, tmp_path: Path, stable: dict[str, Any], candidate: dict[str, Any]) -> int:
    """Endpoint `name` with a stable version that serves; the number of a validated candidate."""
    first = house.upload(name, write_echo(tmp_path / f"{name}1", **stable))
    house.deploy(name, first["number"])
    second = house.upload(name, write_echo(tmp_path / f"{name}2", **candidate))
    assert second["status"] == "ready", second
    house.serves(name, body(1, 0))
    return int(second["number"])


def start(house: House, endpoint: str, version: int, tmp_path: Path, **settings: Any) -> dict[str, Any]:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({**PLAN, "settings": settings}))
    return dict(json.loads(house.cli("rollout", "start", endpoint, str(version), "--plan", str(file), "--json").stdout))


def ended(house: House, rollout: dict[str, Any], timeout_s: float = 200) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        row: dict[str, Any] = house.ok("GET", f"/api/rollouts/{rollout['id']}/")
        return row if row["phase"] in ENDED else None

    found: dict[str, Any] = until("the rollout ends", look, timeout_s, 0.5)
    found["log"] = [f"{event['kind']}: {event['words']}" for event in events_of(house, rollout)]
    return found


def events_of(house: House, rollout: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = house.ok("GET", f"/api/rollouts/{rollout['id']}/events/")
    return found


def offered(house: House, endpoint: str, asked: Any, per_second: float = 40.0) -> Load:
    url = f"{house.gateway_url}/v2/models/{endpoint}/infer"
    return Load(url, asked, house.key, per_second=per_second, max_s=300, vary_session=False)


def versions_of(load: Load) -> Counter[str]:
    return Counter(one.version for one in load.outcomes if one.status == 200)


def shares_of(events: list[dict[str, Any]], version: int) -> list[int]:
    return list(dict.fromkeys(event["weights_after"][str(version)] for event in events))
