"""Rollouts end to end, by what a plan may say: every kind of step, replicas exchanged, a language model, webhooks."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton

from tests.support import language
from tests.support.house import REPO, House, until
from tests.support.receivers import receiver
from tests.support.rolling import ROUGH, body, ended, events_of, offered, shares_of, stage, start, versions_of

pytestmark = pytest.mark.timeout(420)
STEPS: list[dict[str, Any]] = [
    {"kind": "set_scale", "replicas": 2},
    {
        "kind": "route",
        "match": [
            {"source": "header", "name": "X-Beta", "values": ["yes"]},
            {"source": "parameter", "name": "beta", "values": ["yes"]},
        ],
    },
    {"kind": "pause"},
    {"kind": "route", "match": []},
    {"kind": "pause", "duration_s": 1},
    {"kind": "approve", "role": "operator", "n": 1},
    {"kind": "set_weight", "weight_bp": 3000},
    {"kind": "pause"},
    {"kind": "set_weight", "weight_bp": 10_000},
]


def _developer(house: House) -> str:
    made = json.loads(house.cli("keys", "create", "rolls", "--role", "developer", "--json").stdout)
    return str(made["token"])


def _row(house: House, rollout: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = house.ok("GET", f"/api/rollouts/{rollout['id']}/")
    return found


def _stands(house: House, rollout: dict[str, Any], phase: str, step: int) -> None:
    def look() -> bool:
        row = _row(house, rollout)
        return row["phase"] == phase and row["step"] == step

    until(f"it is {phase} at step {step}", look, 90, 0.3)


def _saved(house: House, tmp_path: Path, name: str, steps: list[dict[str, Any]]) -> int:
    file = tmp_path / f"{name}.json"
    file.write_text(json.dumps({"name": name, "steps": steps, "settings": {"guardrails": ROUGH}}))
    return int(json.loads(house.cli("rollout", "save-plan", str(file), "--team", "default", "--json").stdout)["number"])


def _by_grpc(house: House, endpoint: str, **headers: str) -> str:
    tensor = triton.InferInput("input", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
    with triton.InferenceServerClient(f"127.0.0.1:{house.grpc_port}") as client:
        found = client.infer(endpoint, [tensor], headers={"authorization": f"Bearer {house.key}", **headers})
    return str(found.get_response().model_version)


def test_every_kind_of_step_is_walked_by_its_own_door(house: House, tmp_path: Path) -> None:
    name = "stepped"
    version = stage(house, name, tmp_path, {"factor": 2.0}, {"factor": 2.0, "sleep_ms": 6})
    assert _saved(house, tmp_path, "ours", STEPS[-1:]) == 1
    assert _saved(house, tmp_path, "ours", STEPS) == 2
    developer = _developer(house)
    asked = {"endpoint": name, "version": version, "plan": "ours", "reason": "a walk"}
    answer = house.api("POST", "/api/rollouts/", asked, key=developer)
    assert answer.status_code == 201, answer.text
    rollout = answer.json()
    assert (rollout["plan_name"], rollout["plan_number"]) == ("ours", 2)
    watching = subprocess.Popen(
        [sys.executable, "-m", "serinus", "rollout", "status", name, "--watch", "--json"],
        env=house.environment, cwd=REPO, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    _stands(house, rollout, "paused", 2)
    assert len(house.ready_replicas(name)) == 3, "two of the candidate beside the stable version's"
    until(
        "the header is heeded",
        lambda: house.infer(name, body(1, 0), **{"X-Beta": "yes"}).headers["X-Model-Version"] == "2",
        10,
    )
    assert {house.infer(name, body(n, 0), **{"X-Beta": "no"}).headers["X-Model-Version"] for n in range(10)} == {"1"}
    with_parameter = {**body(1, 0), "parameters": {"beta": "yes"}}
    assert house.infer(name, with_parameter).headers["X-Model-Version"] == "2"
    assert (_by_grpc(house, name, **{"x-beta": "yes"}), _by_grpc(house, name)) == ("2", "1")

    house.cli("rollout", "promote", name)
    _stands(house, rollout, "awaiting_approval", 5)
    until(
        "nobody is routed any more",
        lambda: house.infer(name, body(1, 0), **{"X-Beta": "yes"}).headers["X-Model-Version"] == "1",
        10,
    )
    refused = house.api("POST", f"/api/rollouts/{rollout['id']}/approve/", {}, key=developer)
    assert refused.status_code == 403, refused.text
    house.cli("rollout", "approve", name, "--reason", "looks fine")

    _stands(house, rollout, "paused", 7)
    seen = Counter(house.infer(name, body(n, 0)).headers["X-Model-Version"] for n in range(100))
    assert 10 < seen["2"] < 55, seen
    kept = {house.infer(name, body(n, 0), **{"X-Session-Id": "me"}).headers["X-Model-Version"] for n in range(10)}
    assert len(kept) == 1
    pinned = house.infer(name, body(1, 0), **{"X-Model-Version": "1"})
    assert (pinned.headers["X-Model-Version"], pinned.headers["X-Rollout-Arm"]) == ("1", "primary")
    for verb in ("pause", "resume", "extend"):
        house.cli("rollout", verb, name)
    _stands(house, rollout, "paused", 7)
    house.cli("rollout", "promote", name, "--reason", "enough")
    assert ended(house, rollout)["phase"] == "succeeded"

    lines = [json.loads(line) for line in watching.communicate(timeout=30)[0].splitlines()]
    assert (watching.returncode, lines[-1]["phase"]) == (0, "succeeded")
    history = json.loads(house.cli("rollout", "history", name, "--json").stdout)
    assert {"started", "promote", "approve", "pause", "resume", "extend", "succeeded"} <= {
        row["kind"] for row in history
    }
    assert shares_of(history, version) == [0, 3000, 10_000]


def test_where_both_do_not_fit_replicas_are_exchanged_under_load(house: House, tmp_path: Path) -> None:
    name = "exchanged"
    version = stage(house, name, tmp_path, {"factor": 2.0}, {"factor": 2.0, "sleep_ms": 6})
    house.scale(name, 1, 2)
    until("two replicas are ready", lambda: len(house.ready_replicas(name)) == 2, 60)
    most, is_over = [0], threading.Event()

    def count() -> None:
        while not is_over.wait(0.3):
            row = house.ok("GET", f"/api/endpoints/{name}/")
            most[0] = max(most[0], sum(variant["replicas"] for variant in row["variants"]))

    counting = threading.Thread(target=count, daemon=True)
    with offered(house, name, lambda number: body(number, 0)) as load:
        counting.start()
        rollout = start(house, name, version, tmp_path, surge=False, guardrails=ROUGH)
        done = ended(house, rollout)
    is_over.set()
    counting.join(10)
    assert done["phase"] == "succeeded", done["log"]
    assert most[0] == 2, "never more were wished for than before"
    assert {one.status for one in load.outcomes} == {200}, load.explain()
    wishes = {row["version"]: row["replicas"] for row in house.ok("GET", f"/api/endpoints/{name}/")["variants"]}
    assert wishes == {1: 0, version: 2}
    assert versions_of(load)[str(version)] > 0


def test_a_language_model_is_judged_by_its_first_and_next_tokens(house: House, tmp_path: Path) -> None:
    name = "rolling-lm"
    language.folder(tmp_path / "first")
    language.folder(tmp_path / "second", noise=0.001)
    house.deploy(name, house.upload(name, tmp_path / "first")["number"])
    version = house.upload(name, tmp_path / "second")
    assert version["status"] == "ready", version
    guardrails = [*ROUGH, {"metric": "first_token_p95", "margin": 0.5}, {"metric": "next_token_p95", "margin": 0.5}]
    asked = {"model": name, "prompt": "a b c", "max_tokens": 4, "stream": True, "ignore_eos": True}
    statuses: Counter[int] = Counter()
    is_over = threading.Event()

    def talk() -> None:
        with httpx.Client(base_url=house.gateway_url, headers={"Authorization": f"Bearer {house.key}"}) as client:
            while not is_over.is_set():
                with client.stream("POST", "/v1/completions", json=asked, timeout=30) as answer:
                    statuses[answer.status_code] += 1
                    assert answer.read()

    until("it answers", lambda: house.ok("GET", f"/api/endpoints/{name}/")["variants"][0]["ready_replicas"], 60)
    talkers = [threading.Thread(target=talk, daemon=True) for _ in range(3)]
    for one in talkers:
        one.start()
    try:
        rollout = start(house, name, version["number"], tmp_path, guardrails=guardrails)
        done = ended(house, rollout, 280)
    finally:
        is_over.set()
        for one in talkers:
            one.join(30)
    assert done["phase"] == "succeeded", done["log"]
    judged = next(event for event in events_of(house, rollout) if event["reason"] == "judge_passed")
    findings = {one["metric"]: one for one in judged["evidence"]["findings"]}
    assert findings["first_token_p95"]["n_requests"] > 0
    assert findings["next_token_p95"]["n_requests"] > findings["first_token_p95"]["n_requests"]
    assert set(statuses) == {200}


def test_every_event_is_told_to_a_webhook_with_its_signature(house: House, tmp_path: Path) -> None:
    version = stage(house, "told", tmp_path, {"factor": 2.0}, {"factor": 2.0, "sleep_ms": 6})
    with receiver() as found:
        made = house.ok("POST", "/api/webhooks/", {"url": f"{found.url}/hook", "team": "default", "events": []})
        try:
            rollout = json.loads(
                house.cli("rollout", "start", "told", str(version), "--plan", "at-once", "--json").stdout
            )
            assert ended(house, rollout)["phase"] == "succeeded"
            kinds = [event["kind"] for event in events_of(house, rollout)]
            until("all of them came", lambda: len(_of(found.got, rollout)) >= len(kinds), 30)
            told = _of(found.got, rollout)
            assert sorted(one["kind"] for one in told) == sorted(kinds)
            assert all(got.is_signed(made["secret"]) for got in found.got)
            log = house.ok("GET", f"/api/webhooks/{made['id']}/deliveries/")["results"]
            assert {row["state"] for row in log} == {"delivered"}
        finally:
            house.api("DELETE", f"/api/webhooks/{made['id']}/")


def _of(got: list[Any], rollout: dict[str, Any]) -> list[dict[str, Any]]:
    bodies = [json.loads(one.body) for one in got]
    found = [one.get("data", one) for one in bodies]
    return [one for one in found if one.get("rollout") == rollout["id"]]
