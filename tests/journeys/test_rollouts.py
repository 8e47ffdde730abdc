"""Rollouts end to end on a running house: one that promotes itself, and five candidates that are each rolled back alone.

The laws under test: a candidate that crashes or fails costs clients no error (its requests are asked again of the stable
version); one that answers wrongly costs no more than its share; the stable version's clients notice nothing.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support import artifacts
from tests.support.house import House, until
from tests.support.rolling import (
    ENDED,
    MAGIC,
    PLAN,
    ROUGH,
    SHARE_BP,
    body,
    ended,
    events_of,
    offered,
    shares_of,
    stage,
    start,
    versions_of,
)

from .conftest import write_echo

pytestmark = pytest.mark.timeout(420)


@pytest.fixture(scope="module")
def digits(house: House, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """Endpoint `rolling-digits` with the torch version; the number of the JAX version."""
    folder = tmp_path_factory.mktemp("digits")
    artifacts.digits(folder)
    first = house.upload("rolling-digits", folder / "torch")
    house.deploy("rolling-digits", first["number"])
    second = house.upload("rolling-digits", folder / "jax")
    assert second["status"] == "ready"
    return "rolling-digits", int(second["number"])


def _digit(number: int) -> dict[str, Any]:
    from sklearn.datasets import load_digits

    images = load_digits().data
    image = (images[number % len(images)] / 16).astype(np.float32)
    return {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 64], "data": image.tolist()}]}


def test_the_jax_version_takes_over_from_the_torch_version_by_itself(
    house: House, digits: tuple[str, int], tmp_path: Path
) -> None:
    endpoint, version = digits
    house.serves(endpoint, _digit(0))
    golden = house.infer(endpoint, _digit(3)).json()
    kept = {"name": "three", "inputs": _digit(3)["inputs"], "outputs": golden["outputs"], "tolerance": 0.5}
    house.ok("POST", f"/api/models/{endpoint}/golden/", kept)
    bodies = [_digit(number) for number in range(50)]
    with offered(house, endpoint, lambda number: bodies[number % 50]) as load:
        until("it serves", lambda: len(load.outcomes) > 20, 30)
        rollout = start(house, endpoint, version, tmp_path, guardrails=ROUGH)
        done = ended(house, rollout)
        time.sleep(2)
    assert done["phase"] == "succeeded", done["log"]
    assert {one.status for one in load.outcomes} == {200}
    assert load.outcomes[-1].version == str(version)
    assert "golden input" in done["smoke"]["words"]
    events = events_of(house, rollout)
    assert shares_of(events, version) == [0, SHARE_BP, 10_000]
    assert [event["kind"] for event in events if event["actor"] != "serinus"] == ["started"]
    back = json.loads(house.cli("rollout", "back", endpoint, "--json").stdout)
    until("one click goes back", lambda: house.infer(endpoint, _digit(1)).headers["X-Model-Version"] == "1", 10)
    assert ended(house, back)["phase"] == "succeeded"


@pytest.mark.parametrize(
    ("fault", "every", "reasons", "said"),
    [
        ("raise", 20, {"guardrail", "hard_stop"}, "rrors"),
        ("nan", 20, {"guardrail", "hard_stop"}, "NaN"),
        ("abort", 10, {"hard_stop", "guardrail"}, "crash"),
    ],
    ids=["fails on 5 % of inputs", "answers NaN", "crashes on some requests"],
)
def test_a_candidate_that_fails_is_rolled_back_and_costs_no_client_an_error(
    house: House, tmp_path: Path, fault: str, every: int, reasons: set[str], said: str
) -> None:
    name = f"bad-{fault}"
    candidate = {"factor": 2.0, "faults": [{"value": MAGIC, "kind": fault}]}
    version = stage(house, name, tmp_path, {"factor": 2.0}, candidate)
    with offered(house, name, lambda number: body(number, every)) as load:
        until("it serves", lambda: len(load.outcomes) > 20, 30)
        rollout = start(house, name, version, tmp_path)
        done = ended(house, rollout)
        time.sleep(1)
    assert done["phase"] == "rolled_back", done["log"]
    events = events_of(house, rollout)
    abort = next(event for event in events if event["kind"] == "aborting")
    assert abort["reason"] in reasons, abort
    assert said in abort["words"], abort["words"]
    assert abort["weights_after"][str(version)] == 0
    statuses = Counter(one.status for one in load.outcomes)
    if fault == "nan":
        # JSON has no word for NaN: it is null there.
        wrong = sum(one.status != 200 or "null" in one.text for one in load.outcomes)
        print(f"wrong answers: {wrong} of {len(load.outcomes)}")
        assert wrong >= 3, "the judge has seen three of them"
        assert wrong / len(load.outcomes) <= SHARE_BP / 10_000 / every + 0.03
    else:
        assert statuses == {200: len(load.outcomes)}, statuses
    assert versions_of(load)["1"] > len(load.outcomes) / 2
    watched = house.cli("rollout", "status", name, "--watch", "--json", check=False)
    assert (watched.returncode, json.loads(watched.stdout)["phase"]) == (1, "rolled_back")


def test_a_slower_candidate_is_rolled_back_by_the_judge(house: House, tmp_path: Path) -> None:
    version = stage(house, "bad-slow", tmp_path, {"factor": 2.0, "sleep_ms": 20}, {"factor": 2.0, "sleep_ms": 26})
    with offered(house, "bad-slow", lambda number: body(number, 0), per_second=20.0) as load:
        until("it serves", lambda: len(load.outcomes) > 20, 30)
        rollout = start(house, "bad-slow", version, tmp_path)
        done = ended(house, rollout, 280)
    assert (done["phase"], done["reason"]) == ("rolled_back", "guardrail"), done["log"]
    abort = next(event for event in events_of(house, rollout) if event["kind"] == "aborting")
    assert abort["reason"] == "guardrail", abort
    assert any(one["metric"].startswith("slow") and one["verdict"] == "fail" for one in abort["evidence"]["findings"])
    assert {one.status for one in load.outcomes} == {200}


EXPIRING = """
import time
from pathlib import Path
import httpx
import numpy as np

signature = {
    "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 4]}],
    "max_batch_size": 32,
}

def load(folder):
    if time.time() > float((Path(folder) / "until.txt").read_text()):
        raise RuntimeError("the licence of this model has expired")
    class Model:
        def predict(self, inputs):
            return {"output": inputs["input"] * 2}
    Model.signature = signature
    return Model()
"""


def test_a_candidate_that_no_longer_loads_fails_before_its_first_request(house: House, tmp_path: Path) -> None:
    name = "bad-load"
    first = house.upload(name, write_echo(tmp_path / "stable", factor=2.0))
    house.deploy(name, first["number"])
    house.serves(name, body(1, 0))
    folder = tmp_path / "expiring"
    folder.mkdir()
    (folder / "serinus_model.py").write_text(EXPIRING)
    end = time.time() + 45
    (folder / "until.txt").write_text(str(end))
    second = house.upload(name, folder)
    house.ok("POST", f"/api/models/{name}/versions/{second['number']}/approve/", {})
    second = house.control.wait_version(name, second["number"], lambda _: None, 60)
    assert second["status"] == "ready", second
    time.sleep(max(0.0, end - time.time()) + 0.5)
    with offered(house, name, lambda number: body(number, 0), per_second=20.0) as load:
        rollout = start(house, name, int(second["number"]), tmp_path)
        done = ended(house, rollout)
    assert done["phase"] == "failed", done["log"]
    events = events_of(house, rollout)
    assert shares_of(events, int(second["number"])) == [0]
    assert any("RuntimeError" in event["words"] for event in events), done["log"]
    assert {one.status for one in load.outcomes} == {200}
    assert set(versions_of(load)) == {"1"}


def test_an_abort_returns_all_traffic_within_a_second(house: House, tmp_path: Path) -> None:
    version = stage(house, "aborted", tmp_path, {"factor": 2.0}, {"factor": 2.0, "sleep_ms": 6})
    with offered(house, "aborted", lambda number: body(number, 0)) as load:
        start(house, "aborted", version, tmp_path)
        until("it has a share", lambda: versions_of(load)[str(version)] > 10, 60)
        row = house.ok("GET", "/api/rollouts/?endpoint=aborted")["results"][0]
        row = house.ok("POST", f"/api/rollouts/{row['id']}/abort/", {"reason": "a test"})
        aborted_at = time.monotonic()
        assert row["phase"] in {"aborting", "rolled_back"}
        time.sleep(4)
        seen = len(load.outcomes)
        time.sleep(1)
        late = load.outcomes[seen:]
    last = max((one.at_s for one in load.outcomes if one.version == str(version)), default=aborted_at)
    print(f"the last request that the candidate answered was sent {last - aborted_at:+.2f} s after the abort's answer")
    assert late
    assert {one.version for one in late} == {"1"}
    assert {one.status for one in load.outcomes} == {200}
    status = house.cli("rollout", "status", "aborted", "--json")
    assert json.loads(status.stdout)["phase"] in {"aborting", "rolled_back"}
    again = json.loads(house.cli("rollout", "abort", "aborted", "--json").stdout)
    assert again["revision"] >= row["revision"]


def test_wrong_answers_are_found_in_copies_before_a_client_gets_one(house: House, tmp_path: Path) -> None:
    """The twin that drifts (row 32): every answer is five per cent off, and none reaches a client."""
    version = stage(house, "drifts", tmp_path, {"factor": 2.0}, {"factor": 2.1})
    plan = {
        "name": "copies",
        "steps": [
            {"kind": "mirror", "share_bp": 10_000},
            {"kind": "analyze", "of": "mirror", "max_duration_s": 200, "min_requests": 30},
            *PLAN["steps"],
        ],
        "settings": {
            "guardrails": [{"metric": "error_rate", "margin": 0.05}, {"metric": "drift_rate", "margin": 0.05}],
            "comparison": {"kind": "close", "tolerance": 0.01},
        },
    }
    file = tmp_path / "copies.json"
    file.write_text(json.dumps(plan))
    with offered(house, "drifts", lambda number: body(number, 0)) as load:
        until("it serves", lambda: len(load.outcomes) > 20, 30)
        started = house.cli("rollout", "start", "drifts", str(version), "--plan", str(file), "--json").stdout
        done = ended(house, json.loads(started))
    assert (done["phase"], done["reason"]) == ("rolled_back", "guardrail"), done["log"]
    abort = next(event for event in events_of(house, done) if event["kind"] == "aborting")
    assert "utputs that differ" in abort["words"], abort["words"]
    assert set(versions_of(load)) == {"1"}
    assert {one.status for one in load.outcomes} == {200}


def test_an_ab_test_is_decided_by_the_score_that_comes_back(house: House, tmp_path: Path) -> None:
    version = stage(house, "scored", tmp_path, {"factor": 2.0}, {"factor": 2.0, "sleep_ms": 6})
    plan = {
        "name": "half",
        "steps": [
            {"kind": "set_weight", "weight_bp": 5000},
            {"kind": "analyze", "max_duration_s": 200, "min_duration_s": 2, "min_requests": 50, "metrics": ["score"]},
        ],
        "settings": {
            "outcome": "ask",
            "guardrails": [{"metric": "error_rate", "margin": 0.05}, {"metric": "score", "margin": 0.1}],
        },
    }
    file = tmp_path / "half.json"
    file.write_text(json.dumps(plan))
    rollout = json.loads(house.cli("rollout", "start", "scored", str(version), "--plan", str(file), "--json").stdout)
    end = time.monotonic() + 200
    scored: Counter[str] = Counter()
    row: dict[str, Any] = rollout
    with httpx.Client(base_url=house.gateway_url, headers={"Authorization": f"Bearer {house.key}"}) as client:
        while row["phase"] not in {*ENDED, "awaiting_approval"} and time.monotonic() < end:
            for number in range(20):
                answer = client.post("/v2/models/scored/infer", json=body(number, 0))
                identity = answer.headers.get("X-Feedback-Id", "")
                if identity:
                    arm = answer.headers["X-Rollout-Arm"]
                    score = 0.9 if arm == "canary" else 0.5
                    assert client.post(f"/v2/feedback/{identity}", json={"score": score}).status_code == 200
                    scored[arm] += 1
            row = house.ok("GET", f"/api/rollouts/{rollout['id']}/")
    assert (row["phase"], row["reason"]) == ("awaiting_approval", "decision"), (row["words"], scored)
    finding = next(one for one in row["judgement"]["findings"] if one["metric"] == "score")
    assert finding["difference"] == pytest.approx(0.4, abs=0.05), finding
    assert row["weight_bp"] == 5000
    house.cli("rollout", "promote", "scored", "--reason", "the score says so")
    assert ended(house, rollout)["phase"] == "succeeded"


def test_it_goes_on_when_everything_around_it_is_killed(house: House, tmp_path: Path) -> None:
    """The controller's worker, Valkey and PostgreSQL are killed in turn, a step of the rollout between each."""
    version = stage(house, "survivor", tmp_path, {"factor": 2.0}, {"factor": 2.0, "sleep_ms": 6})
    steps: list[dict[str, Any]] = []
    for weight in (1000, 3000, 6000):
        steps += [{"kind": "set_weight", "weight_bp": weight}, {"kind": "pause"}]
    plan = {
        "name": "paused",
        "steps": [*steps, {"kind": "set_weight", "weight_bp": 10_000}],
        "settings": {"guardrails": ROUGH},
    }
    file = tmp_path / "paused.json"
    file.write_text(json.dumps(plan))
    with offered(house, "survivor", lambda number: body(number, 0), per_second=20.0) as load:
        started = house.cli("rollout", "start", "survivor", str(version), "--plan", str(file), "--json").stdout
        rollout = json.loads(started)

        def stands(step: int) -> bool:
            row = house.api("GET", f"/api/rollouts/{rollout['id']}/")
            found = row.json() if row.status_code == 200 else {}
            return found.get("phase") == "paused" and found.get("step") == step

        for step, program in ((1, "control"), (3, "valkey"), (5, "postgres")):
            until(f"it stands at step {step}", lambda step=step: stands(step), 90, 0.5)
            house.kill(program)
            until(
                "somebody goes on",
                lambda: house.api("POST", f"/api/rollouts/{rollout['id']}/promote/", {}).status_code == 200,
                90,
                1.0,
            )
        done = ended(house, rollout)
    assert done["phase"] == "succeeded", done["log"]
    assert {one.status for one in load.outcomes} == {200}, load.explain()
    shares = shares_of(events_of(house, rollout), version)
    assert shares == [0, 1000, 3000, 6000, 10_000]


@pytest.mark.parametrize(("factor", "phase"), [(2.0, "succeeded"), (2.4, "failed")], ids=["the same", "other answers"])
def test_recorded_requests_are_a_gate_that_needs_no_live_traffic(
    house: House, tmp_path: Path, factor: float, phase: str
) -> None:
    name = f"replayed-{phase}"
    version = stage(house, name, tmp_path, {"factor": 2.0}, {"factor": factor, "sleep_ms": 6})
    house.ok("POST", f"/api/endpoints/{name}/recording/", {"share_bp": 10_000})
    recorded = f"/api/endpoints/{name}/recorded/"
    with offered(house, name, lambda number: body(number, 0), per_second=20.0):
        until("requests are recorded", lambda: _count(house.ok("GET", recorded)) >= 40, 60, 0.5)
    plan = {
        "name": "replayed",
        "steps": [{"kind": "set_weight", "weight_bp": 10_000}],
        "settings": {"replay": True, "max_drift_share": 0.05, "comparison": {"kind": "close", "tolerance": 0.01}},
    }
    file = tmp_path / "replayed.json"
    file.write_text(json.dumps(plan))
    rollout = json.loads(house.cli("rollout", "start", name, str(version), "--plan", str(file), "--json").stdout)
    done = ended(house, rollout)
    assert done["phase"] == phase, done["log"]
    assert done["smoke"]["replay"], done["smoke"]
    if phase == "failed":
        assert shares_of(events_of(house, rollout), version) == [0]
        assert done["reason"] == "smoke_failed"


def _count(page: Any) -> int:
    return int(page["requests"])
