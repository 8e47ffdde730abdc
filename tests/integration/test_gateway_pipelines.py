"""Pipelines through a real gateway process: steps side by side, errors by name, cancels and deadlines everywhere."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from inference.protocol.messages import Fault
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, PipelineRoute, Steering, StepRoute, VariantRoute
from tests.support.gateway_house import House, until

WIDE = Signature([TensorSpec("x", "FP32", [-1, 4])], [TensorSpec("y", "FP32", [-1, 4])], max_batch_size=8)
GRAPH = Signature(
    [TensorSpec("raw", "FP32", [-1, 4])],
    [TensorSpec("left", "FP32", [-1, 4]), TensorSpec("right", "FP32", [-1, 4])],
    max_batch_size=8,
    platform="ensemble",
)
BODY = {"inputs": [{"name": "raw", "shape": [2, 4], "datatype": "FP32", "data": [1.0, 2, 3, 4, 5, 6, 7, 8]}]}


@pytest.fixture(scope="module")
def shared():
    found = House()
    yield found
    found.close()


@pytest.fixture
def house(shared):
    """head -> (left | right): each step doubles; left and right run side by side."""
    for name in ("head", "left", "right"):
        replica = shared.replicas.get(name) or shared.replica(name, outputs=4)
        replica.fault, replica.silent, replica.latency_s = None, False, 0.0
        replica.seen.clear()
        replica.cancelled.clear()
    return shared


def step(house, name, reads, makes, **more):
    return StepRoute(name, name, 1, WIDE, {"x": reads}, {"y": makes}, [house.route(name)], **more)


def published(house, *, gateway=None, timeout_ms=5000, queue_limit=64, **limits):
    steps = [
        step(house, "left", "t", "left", max_inflight=limits.get("left", 0)),
        step(house, "head", "raw", "t", max_inflight=limits.get("head", 0)),
        step(house, "right", "t", "right", max_inflight=limits.get("right", 0)),
    ]
    variant = VariantRoute(3, "primary", 10_000, GRAPH, pipeline=PipelineRoute(steps))
    graph = EndpointRoute("graph", "graph", "salt", True, timeout_ms, queue_limit, [variant])
    house.publish(house.table([VariantRoute(1, "primary", 10_000, WIDE, [house.route("head")])], endpoints=[graph]))
    door = gateway or (house.gateways[0] if house.gateways else house.gateway().wait_live())
    until(lambda: str(house.generation) in door.log.read_text().rpartition("generation")[2], 10)
    return door.wait_ready("graph")


def ask(door, body=None, **headers):
    return door.post("/v2/models/graph/infer", key="", json=body or BODY, headers=headers)


def outputs(response):
    assert response.status_code == 200, response.text
    return {one["name"]: one["data"] for one in response.json()["outputs"]}


def test_a_graph_answers_like_any_model(house):
    door = published(house)
    response = ask(door)
    fourfold = [4.0 * number for number in range(1, 9)]
    assert outputs(response) == {"left": fourfold, "right": fourfold}
    assert response.json()["model_version"] == "3"
    assert response.headers["x-model-version"] == "3"
    metadata = door.get("/v2/models/graph").json()
    assert (metadata["platform"], metadata["versions"]) == ("ensemble", ["3"])
    assert outputs(door.post("/v2/models/graph/versions/3/infer", json=BODY))
    assert door.get("/v2/models/graph/versions/3/ready").status_code == 200
    assert len(house.replicas["head"].seen) == 2
    assert [one.outputs for one in house.replicas["left"].seen] == [["y"]] * 2


def test_only_what_is_asked_for_runs(house):
    door = published(house)
    assert outputs(ask(door, BODY | {"outputs": [{"name": "right"}]})).keys() == {"right"}
    assert (len(house.replicas["right"].seen), len(house.replicas["left"].seen)) == (1, 0)


def test_branches_run_side_by_side(house):
    door = published(house)
    for name in ("left", "right"):
        house.replicas[name].latency_s = 0.4
    began = time.monotonic()
    outputs(ask(door))
    assert time.monotonic() - began < 0.75


def test_bad_requests_are_answered_against_the_pipelines_signature(house):
    door = published(house)
    many = {"inputs": [{"name": "raw", "shape": [9, 4], "datatype": "FP32", "data": [0.0] * 36}]}
    assert ask(door, many).json()["error"] == "inference request batch-size must be <= 8 for 'graph'"
    other = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0.0] * 4}]}
    assert "unexpected inference input 'x'" in ask(door, other).json()["error"]
    assert house.replicas["head"].seen == []


def test_a_failing_step_is_named(house):
    door = published(house)
    house.replicas["left"].fault = Fault(0, "invalid_input", "too long")
    response = ask(door)
    assert (response.status_code, response.json()["error"]) == (400, "step 'left': too long")
    house.replicas["left"].fault = Fault(0, "overloaded", "Exceeds maximum queue size", 2.0)
    response = ask(door)
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert response.json()["error"] == "step 'left': Exceeds maximum queue size"


def test_a_failure_cancels_what_else_is_under_way(house):
    door = published(house)
    house.replicas["right"].latency_s = 3.0
    house.replicas["left"].fault = Fault(0, "model_failed", "secret words")
    response = ask(door)
    assert response.json()["error"] == "step 'left': The model raised an error."
    until(lambda: house.replicas["right"].cancelled)


def test_the_deadline_reaches_every_step_and_ends_them(house):
    door = published(house)
    for name in ("left", "right"):
        house.replicas[name].latency_s = 3.0
    response = ask(door, **{"X-Request-Timeout-Ms": "200"})
    assert (response.status_code, response.json()["error"]) == (503, "Request timeout expired")
    for name in ("left", "right"):
        assert house.replicas[name].seen[-1].timeout_ms <= 200
        until(lambda name=name: house.replicas[name].cancelled)


def test_a_client_that_leaves_cancels_every_step(house):
    door = published(house)
    for name in ("left", "right"):
        house.replicas[name].latency_s = 5.0
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{door.url}/v2/models/graph/infer", json=BODY, timeout=0.5)
    for name in ("left", "right"):
        until(lambda name=name: house.replicas[name].cancelled)


def test_a_full_step_is_a_503_at_once(house):
    door = published(house, left=2)
    house.replicas["left"].latency_s = 1.0
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(door), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 2 + [503] * 6
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.json()["error"] == "step 'left': Exceeds maximum queue size"
    assert "retry-after" in refused.headers
    house.replicas["left"].latency_s = 0.0
    outputs(ask(door))


def test_it_is_ready_when_every_step_is(house):
    door = published(house)
    house.run(house.replicas["right"].stop())
    until(lambda: door.get("/v2/models/graph/ready").status_code == 400)
    house.run(house.replicas["right"].start())
    door.wait_ready("graph")
    outputs(ask(door))


def test_a_step_that_comes_back_in_time_is_waited_for(house):
    door = published(house)
    house.run(house.replicas["right"].stop())
    until(lambda: door.get("/v2/models/graph/ready").status_code == 400)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, door)
        time.sleep(0.3)
        house.run(house.replicas["right"].start())
        outputs(asked.result())


def test_a_replica_lost_under_a_step_costs_one_retry(house):
    door = published(house)
    house.replicas["right"].latency_s = 0.6
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, door)
        until(lambda: house.replicas["right"].seen)
        house.run(house.replicas["right"].stop())
        house.run(house.replicas["right"].start())
        outputs(asked.result())
    assert len(house.replicas["head"].seen) == 1


def test_a_pin_without_replicas_is_not_found(house):
    door = published(house)
    missing = VariantRoute(
        4, "canary", 0, GRAPH, pipeline=PipelineRoute([StepRoute("s", "s", 1, WIDE, {"x": "raw"}, {"y": "left"})])
    )
    graph = EndpointRoute("graph", "graph", "salt", True, 5000, 64, [missing])
    house.publish(house.table([VariantRoute(1, "primary", 10_000, WIDE, [house.route("head")])], endpoints=[graph]))
    until(lambda: door.get("/v2/models/graph/versions/3").status_code == 404)
    response = door.post("/v2/models/graph/versions/4/infer", json=BODY)
    assert response.status_code == 404
    assert "version 4 is not at ready state" in response.json()["error"]


def test_steps_are_counted_beside_the_endpoint(house):
    door = published(house)
    for _ in range(3):
        outputs(ask(door))

    def counted() -> bool:
        lines = [line for line in door.get("/metrics").text.splitlines() if "requests" in line and "_total" in line]
        return any('"graph/left"' in line for line in lines) and any('"graph"' in line for line in lines)

    until(counted)


def test_a_graph_that_fails_as_a_candidate_is_answered_by_the_stable_one(house):
    """The candidate's graph ends in a step of its own, which fails; its other steps are given up."""
    door = published(house)
    shared = [step(house, "left", "t", "left"), step(house, "head", "raw", "t")]
    stable = PipelineRoute([*shared, step(house, "right", "t", "right")])
    if "right2" not in house.replicas:
        house.replica("right2", outputs=4)
    candidate = PipelineRoute([*shared, step(house, "right2", "t", "right")])
    variants = [
        VariantRoute(3, "primary", 0, GRAPH, pipeline=stable),
        VariantRoute(4, "canary", 10_000, GRAPH, pipeline=candidate),
    ]
    graph = EndpointRoute("graph", "graph", "salt", True, 5000, 64, variants, steering=Steering("r", 3, 4))
    house.publish(house.table([VariantRoute(1, "primary", 10_000, WIDE, [house.route("head")])], endpoints=[graph]))
    until(lambda: door.get("/v2/models/graph/versions/4/ready").status_code == 200, 10)
    until(lambda: ask(door).headers.get("x-model-version") == "4")
    house.replicas["right2"].fault = Fault(0, "model_failed", "no")
    house.replicas["left"].latency_s = 0.2  # is still under way when its sibling fails
    response = ask(door)
    fourfold = [4.0 * number for number in range(1, 9)]
    assert outputs(response) == {"left": fourfold, "right": fourfold}
    assert response.headers["x-model-version"] == "3"
    until(lambda: house.replicas["left"].cancelled)
    until(lambda: "serinus_requests_in_flight 0.0" in door.get("/metrics").text)
    house.run(house.replicas["right2"].stop())
    until(lambda: door.get("/v2/models/graph/versions/4/ready").status_code == 400)
    assert outputs(ask(door)) == {"left": fourfold, "right": fourfold}
    del house.replicas["right2"]
