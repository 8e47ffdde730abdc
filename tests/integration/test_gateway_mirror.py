"""Copies of live requests: who gets them, what they may never cost, and how their answers are compared."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from websockets.sync.client import connect

from inference.protocol import generation
from inference.protocol.messages import BACKGROUND, Fault
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import Comparison, EndpointRoute, PipelineRoute, Steering, StepRoute, VariantRoute
from inference.protocol.settings import RuntimeSettings
from inference.protocol.signatures import public_signature
from tests.support.fake_language import FakeLanguage
from tests.support.gateway_house import MLP, House, free_port, request, until
from tests.support.mirrored import diffs, mirrored, sums, until_sums


@pytest.fixture(scope="module")
def shared():
    found = House()
    found.replica("r1")
    found.replica("r2", version=2)
    found.gateway(SERINUS_GRPC_PORT=str(free_port()))
    found.publish(found.table())
    found.gateways[0].wait_live()
    yield found
    found.close()


@pytest.fixture
def house(shared):
    for replica in shared.replicas.values():
        replica.fault, replica.silent, replica.factor, replica.kills_at = None, False, 2.0, None
        replica.seen.clear()
    yield shared
    for replica in shared.replicas.values():
        shared.loop.call_soon_threadsafe(replica.let_go)


def ask(house, name, times=1, **more):
    """Sends that many requests, each of which must succeed; answers their seconds."""
    gateway, took = house.gateways[0], []
    with httpx.Client(headers={"Authorization": "Bearer ser_all.s2"}) as client:
        for _ in range(times):
            began = time.monotonic()
            response = client.post(f"{gateway.url}/v2/models/{name}/infer", json=request(), **more)
            took.append(time.monotonic() - began)
            assert response.status_code == 200, response.text
            assert response.json()["outputs"][0]["data"] == [0.0, 2.0, 4.0, 6.0]
    return took


def of_stable(house, name):
    """Headers with which a request goes to the stable version."""
    for number in range(100):
        headers = {"X-Session-Id": f"s{number}"}
        if house.gateways[0].post(f"/v2/models/{name}/infer", headers=headers).headers["x-model-version"] == "1":
            return headers
    raise AssertionError("all sessions go to the candidate")


def test_every_request_is_copied_compared_and_counted_apart(house):
    name = mirrored(house, "same")
    ask(house, name, 40)
    shadow = until_sums(house, name, lambda found: found.compared >= 40)
    assert (shadow.version, shadow.requests, shadow.errors, shadow.compared) == (2, 40, 0, 40)
    assert (shadow.drifted, shadow.drift_sum, shadow.dropped) == (0, 0.0, 0)
    assert sums(house, name, "primary").requests == 40
    assert diffs(house, name) == []
    copies = house.replicas["r2"].seen
    assert {copy.priority for copy in copies} == {BACKGROUND}
    assert {live.priority for live in house.replicas["r1"].seen} == {0}


def test_answers_that_differ_are_drift_and_the_worst_of_a_second_is_told(house):
    name = mirrored(house, "other")
    house.replicas["r2"].factor = 3.0
    ask(house, name, 20)
    shadow = until_sums(house, name, lambda found: found.compared >= 20)
    # [0 2 4 6] against [0 3 6 9]: the order of the largest is the same, so "auto" sees none ...
    assert (shadow.drifted, shadow.drift_sum) == (0, 0.0)
    name = mirrored(house, "closer", comparison=Comparison(kind="close"))
    ask(house, name, 20)
    shadow = until_sums(house, name, lambda found: found.compared >= 20)
    assert shadow.drifted == 20
    assert shadow.drift_sum == pytest.approx(20 * 0.2)
    assert shadow.drift_sq == pytest.approx(20 * 0.04)
    until(lambda: diffs(house, name), 5)
    found = diffs(house, name)
    assert 1 <= len(found) <= 4
    worst = found[0]
    assert (worst.stable, worst.candidate, worst.kind, worst.output) == (1, 2, "close", "y")
    assert (worst.distance, worst.is_drift) == (pytest.approx(0.2), True)
    assert worst.request.startswith("x FP32[1, 16]: 0 1 2 3")
    assert worst.stable_ms > 0
    assert worst.candidate_ms > 0
    assert "s2" not in repr(worst)


def test_a_share_is_a_share(house):
    name = mirrored(house, "share", mirror_bp=2500)
    ask(house, name, 400)
    shadow = until_sums(house, name, lambda found: found.requests >= 60)
    time.sleep(1.2)
    assert 60 <= sums(house, name, "shadow").requests <= 140
    assert shadow.dropped == 0


def test_a_candidate_that_stands_still_costs_nobody_anything_and_gets_no_more_than_its_budget(house):
    name = mirrored(house, "still", mirror_inflight=5, more={"queue_limit": 4})
    house.replicas["r2"].holds = True
    took = ask(house, name, 50)
    assert sorted(took)[25] < 0.1
    shadow = until_sums(house, name, lambda found: found.dropped >= 45)
    assert (shadow.dropped, shadow.requests) == (45, 0)
    assert len(house.replicas["r2"].held) == 5
    house.loop.call_soon_threadsafe(house.replicas["r2"].let_go)
    assert until_sums(house, name, lambda found: found.compared >= 5).compared == 5


def test_copies_wait_for_no_live_request_and_no_live_request_for_them(house):
    """The candidate has live traffic too: while one of those is under way there, no copy goes to it."""
    name = mirrored(house, "both", share_bp=5000, more={"timeout_ms": 30_000})
    candidate, gateway = house.replicas["r2"], house.gateways[0]
    session = of_stable(house, name)
    before = until_sums(house, name, lambda found: found.compared >= 1).compared
    candidate.holds = True
    with ThreadPoolExecutor(1) as pool:
        live = pool.submit(gateway.post, f"/v2/models/{name}/versions/2/infer")
        until(lambda: len(candidate.held) == 1)
        for _ in range(20):
            assert gateway.post(f"/v2/models/{name}/infer", headers=session).status_code == 200
        assert len(candidate.held) == 1
        shadow = until_sums(house, name, lambda found: found.dropped >= 20)
        assert (shadow.dropped, shadow.requests) == (20, before)
        house.loop.call_soon_threadsafe(candidate.let_go)
        assert live.result(10).status_code == 200
    assert gateway.post(f"/v2/models/{name}/infer", headers=session).status_code == 200
    assert until_sums(house, name, lambda found: found.compared > before).compared == before + 1


def test_a_failing_copy_is_counted_and_tried_once(house):
    name = mirrored(house, "failing")
    candidate = house.replicas["r2"]
    candidate.fault = Fault(0, "model_failed", "no")
    ask(house, name, 10)
    shadow = until_sums(house, name, lambda found: found.requests >= 10)
    assert (shadow.requests, shadow.errors, shadow.retries, shadow.compared) == (10, 10, 0, 0)
    assert shadow.error_counts == {"model_failed": 10}
    assert len(candidate.seen) == 10


def test_what_the_candidate_refuses_is_as_far_as_can_be_and_want_of_room_is_not(house):
    name = mirrored(house, "refusing")
    candidate = house.replicas["r2"]
    candidate.fault = Fault(0, "invalid_input", "the shape is wrong")
    ask(house, name, 3)
    shadow = until_sums(house, name, lambda found: found.requests >= 3)
    assert (shadow.errors, shadow.compared, shadow.drifted, shadow.drift_sum) == (0, 3, 3, 3.0)
    until(lambda: diffs(house, name), 5)
    found = diffs(house, name)[0]
    assert (found.kind, found.output, found.detail) == ("refused", "", "invalid_input: the shape is wrong")
    candidate.fault = Fault(0, "overloaded", "full")
    ask(house, name, 3)
    shadow = until_sums(house, name, lambda found: found.dropped >= 3)
    assert (shadow.requests, shadow.dropped) == (3, 3)


def test_a_copy_that_kills_the_candidate_harms_no_live_request(house):
    name = mirrored(house, "killing")
    house.replicas["r2"].kills_at = 0.0
    ask(house, name, 5)
    shadow = until_sums(house, name, lambda found: found.errors >= 1)
    assert set(shadow.error_counts) == {"replica_lost"}
    assert sums(house, name, "primary").errors == 0
    house.replicas["r2"].kills_at = None
    until(lambda: house.gateways[0].get(f"/v2/models/{name}/versions/2/ready").status_code == 200, 10)


def test_a_copy_has_its_requests_deadline(house):
    name = mirrored(house, "late", more={"timeout_ms": 300})
    house.replicas["r2"].silent = True
    ask(house, name, 4)
    shadow = until_sums(house, name, lambda found: found.requests >= 4)
    assert shadow.error_counts == {"deadline_exceeded": 4}
    assert len(house.replicas["r2"].cancelled) >= 4


def test_without_a_ready_candidate_copies_are_dropped(house):
    name = mirrored(house, "absent", candidate="")
    ask(house, name, 3)
    assert until_sums(house, name, lambda found: found.dropped >= 3).requests == 0


def test_nothing_is_copied_without_a_rollout_that_says_so(house):
    name = mirrored(house, "quiet", mirror_bp=0)
    ask(house, name, 10)
    until_sums(house, name, lambda found: found.requests >= 10, "primary")
    assert house.replicas["r2"].seen == []


def test_pins_and_sequences_are_not_copied(house):
    name = mirrored(house, "some")
    gateway = house.gateways[0]
    for version in (1, 2):
        assert gateway.post(f"/v2/models/{name}/versions/{version}/infer").status_code == 200
    body = request() | {"parameters": {"sequence_id": 7, "sequence_start": True, "sequence_end": True}}
    assert gateway.post(f"/v2/models/{name}/infer", json=body).status_code == 200
    assert gateway.post(f"/v2/models/{name}/infer").status_code == 200
    shadow = until_sums(house, name, lambda found: found.requests >= 1)
    time.sleep(1.2)
    assert (sums(house, name, "shadow").requests, shadow.dropped) == (1, 0)


def test_other_doors_are_copied_too(house):
    name = mirrored(house, "doors")
    gateway = house.gateways[0]
    client = triton.InferenceServerClient(gateway.grpc_address)
    given = triton.InferInput("x", [1, 16], "FP32")
    given.set_data_from_numpy(np.arange(16, dtype=np.float32).reshape(1, 16))
    assert client.infer(name, [given]).as_numpy("y")[0, 1] == 2.0
    client.close()
    with connect(f"ws://127.0.0.1:{gateway.port}/v2/models/{name}/stream", subprotocols=["serinus.v1"]) as socket:
        socket.send(json.dumps(request(identity="1")))
        assert '"y"' in socket.recv(timeout=5)
    assert httpx.post(f"{gateway.url}/v2/models/{name}/generate", json={"x": list(range(16))}).status_code == 200
    shadow = until_sums(house, name, lambda found: found.compared >= 3)
    assert (shadow.requests, shadow.compared, shadow.drifted) == (3, 3, 0)


@pytest.fixture
def language(house):
    for name, version in (("lm1", 1), ("lm2", 2)):
        if name not in house.replicas:
            replica = FakeLanguage(str(house.folder / f"{name}.sock"), name=name, version=version)
            house.replicas[name] = house.run(replica.start())
        house.replicas[name].asked.clear()
    return house


def say(house, name, text, **more):
    body = {"model": name, "messages": [{"role": "user", "content": text}]} | more
    response = httpx.post(f"{house.gateways[0].url}/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return response


def test_greedy_chats_are_compared_whole_or_streamed_and_sampled_ones_only_counted(language):
    house = language
    signature = public_signature(generation.language_signature(), RuntimeSettings())
    name = mirrored(house, "chat", signature=signature, stable="lm1", candidate="lm2")
    say(house, name, "one two three four", temperature=0)
    say(house, name, "one two three four", temperature=0, stream=True)
    say(house, name, "one two three four", temperature=0.7)
    shadow = until_sums(house, name, lambda found: found.requests >= 3)
    assert (shadow.requests, shadow.compared, shadow.drifted) == (3, 2, 0)
    copies = house.replicas["lm2"].asked
    assert {copy.priority for copy in copies} == {generation.BACKGROUND}
    assert {live.priority for live in house.replicas["lm1"].asked} == {0}
    body = {"text_input": "one two", "temperature": 0}
    assert httpx.post(f"{house.gateways[0].url}/v2/models/{name}/generate", json=body).status_code == 200
    assert until_sums(house, name, lambda found: found.compared >= 3).drifted == 0


def test_a_language_model_that_says_something_else_is_shown_with_the_last_words_asked(language):
    house = language
    signature = public_signature(generation.language_signature(), RuntimeSettings())
    name = mirrored(house, "talk", signature=signature, stable="lm1", candidate="lm2")
    say(house, name, "long", temperature=0, max_tokens=4)
    until_sums(house, name, lambda found: found.compared >= 1)
    house.replicas["lm2"].words = "another answer"
    say(house, name, "what is it", temperature=0)
    shadow = until_sums(house, name, lambda found: found.compared >= 2)
    assert shadow.drifted == 1
    until(lambda: diffs(house, name), 5)
    found = diffs(house, name)[-1]
    assert (found.output, found.kind, found.request) == ("text", "text", "user: what is it")
    house.replicas["lm2"].words = ""


def test_pipelines_are_copied_step_by_step_behind_all_others(house):
    wide = Signature([TensorSpec("x", "FP32", [-1, 16])], [TensorSpec("y", "FP32", [-1, 4])], max_batch_size=64)
    step = StepRoute("only", "m", 2, wide, {"x": "x"}, {"y": "y"}, [house.route("r2")])
    variants = [
        VariantRoute(1, "primary", 10_000, MLP, [house.route("r1")]),
        VariantRoute(2, "canary", 0, MLP, pipeline=PipelineRoute([step])),
    ]
    endpoint = EndpointRoute("graph", "m", "s", True, 5000, 64, variants, steering=Steering("r", 1, 2, 10_000))
    house.publish(house.table(endpoints=[endpoint]))
    gateway = house.gateways[0].wait_ready("graph")
    until(lambda: gateway.get("/v2/models/graph/versions/2/ready").status_code == 200, 10)
    ask(house, "graph", 5)
    shadow = until_sums(house, "graph", lambda found: found.compared >= 5)
    assert (shadow.requests, shadow.errors, shadow.drifted) == (5, 0, 0)
    assert {copy.priority for copy in house.replicas["r2"].seen} == {BACKGROUND}
