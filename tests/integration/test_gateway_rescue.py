"""A candidate that fails, by every door of a real gateway process: its callers are answered by the stable version."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from inference.protocol.messages import Fault
from inference.protocol.oip import Signature, TensorSpec
from tests.support.gateway_house import MLP, request, until
from tests.support.rollout_house import (
    CANDIDATE,
    DOORS,
    KEY,
    LANGUAGE_DOORS,
    STABLE,
    TENSOR_DOORS,
    by_generate,
    by_grpc,
    by_rest,
    by_sse,
    fixtures,
    says,
)

ROWS = [float(i) for i in range(16)]


opened, house = fixtures()


def of(house, door):
    """The candidate's replica behind a door."""
    return house.replicas[CANDIDATE if door in TENSOR_DOORS else "lm2"]


@pytest.mark.parametrize("code", ["model_failed", "overloaded", "not_ready", "draining", "internal", "poison_input"])
@pytest.mark.parametrize("door", TENSOR_DOORS)
def test_what_the_candidate_fails_is_answered_by_stable(house, door, code):
    house.begin(10_000)
    of(house, door).fault = Fault(0, code, "no")
    assert says(TENSOR_DOORS[door](house.door)) == ("1", "primary")
    assert len(house.replicas[STABLE].seen) == 1


@pytest.mark.parametrize("door", LANGUAGE_DOORS)
def test_a_chat_that_the_candidate_fails_at_once_is_answered_by_stable(house, door):
    house.begin(10_000)
    of(house, door).fault = Fault(0, "model_failed", "no")
    assert says(DOORS[door](house.door, text="hello there")) == ("1", "primary")
    of(house, door).fault = None
    assert says(DOORS[door](house.door, text="hello there")) == ("2", "canary")


def test_every_request_of_a_crashing_candidate_is_answered(house):
    """Row 31 of the fault matrix: it dies at each request, again and again. Some inputs come often, and so come to be
    refused there; their senders do not notice.
    """
    house.begin(5000)
    replica = house.replicas[CANDIDATE]
    replica.restart_s = 0.15
    replica.kills_at = 31.0
    house.forget()

    def ask(number):
        with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as client:
            found = []
            for turn in range(60):
                headers = {"X-Session-Id": f"{number}-{turn}"}
                body = request([31.0, 0.0 if turn % 3 else float(turn), *ROWS[2:]])
                found.append(client.post(f"{house.door.url}/v2/models/mlp/infer", json=body, headers=headers))
                time.sleep(0.01)
            return found

    with ThreadPoolExecutor(8) as pool:
        answers = [one for found in pool.map(ask, range(8)) for one in found]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-model-version"] for answer in answers} == {"1"}
    assert replica.deaths >= 3
    found = house.counted()
    canary, primary = found["canary"], found["primary"]
    assert primary.requests == len(answers)
    assert primary.errors == 0
    assert canary.requests == canary.errors == canary.rescued > 0
    assert sum(canary.error_counts.values()) == canary.errors
    assert set(canary.error_counts) == {"replica_lost", "poison_input"}


def test_the_crash_of_both_makes_a_suspect_as_usual(house):
    house.begin(10_000)
    for name in (STABLE, CANDIDATE):
        house.replicas[name].kills_at = 3.0
    deaths = house.replicas[CANDIDATE].deaths
    killer = [3.0] * 16
    answer = by_rest(house.door, values=killer, headers={"X-Request-Timeout-Ms": "4000"})
    assert "died on exactly this input" in answer.error
    assert house.replicas[STABLE].deaths == 2
    assert house.replicas[CANDIDATE].deaths == deaths + 1


def test_a_rescue_counts_for_the_candidate_and_leaves_stables_latency_alone(house):
    house.begin(10_000)
    replica = house.replicas[CANDIDATE]
    replica.latency_s, replica.fault = 0.4, Fault(0, "model_failed", "no")
    replica.latency_s = 0.4
    house.forget()
    for _ in range(3):
        assert says(by_rest(house.door)) == ("1", "primary")
    found = house.counted()
    canary, primary = found["canary"], found["primary"]
    assert (canary.requests, canary.errors, canary.rescued) == (3, 3, 3)
    assert canary.error_counts == {"model_failed": 3}
    assert (primary.requests, primary.errors, primary.retries) == (3, 0, 0)
    assert canary.latency_sum_ms > 1200
    assert primary.latency_sum_ms < 300
    text = house.door.get("/metrics").text
    assert 'serinus_requests_rescued_total{arm="canary",endpoint="mlp",version="2"}' in text


def test_an_input_that_neither_takes_is_its_senders_fault(house):
    house.begin(10_000)
    for name in (STABLE, CANDIDATE):
        house.replicas[name].fault = Fault(0, "poison_input", "The model failed on exactly this input.")
    house.forget()
    assert "exactly this input" in by_rest(house.door).error
    house.replicas[STABLE].fault = None
    assert says(by_rest(house.door))[0] == "1"
    found = house.counted()
    canary, primary = found["canary"], found["primary"]
    assert (canary.requests, canary.errors, canary.rescued) == (2, 1, 1)
    assert canary.error_counts == {"poison_input": 2}
    assert (primary.requests, primary.errors) == (2, 0)


def test_what_both_fail_is_an_error_of_both_and_stables_is_told(house):
    house.begin(10_000)
    house.replicas[CANDIDATE].fault = Fault(0, "model_failed", "no")
    house.replicas[STABLE].fault = Fault(0, "out_of_memory", "no")
    house.forget()
    assert "ran out of memory" in by_rest(house.door).error
    found = house.counted()
    assert (found["canary"].errors, found["canary"].rescued, found["primary"].errors) == (1, 0, 1)


@pytest.mark.parametrize("case", ["no rescue", "pinned", "client's fault", "too late", "no rollout"])
def test_what_is_not_rescued(house, case):
    house.begin(10_000, rescue=case != "no rescue", steers=case != "no rollout")
    replica = house.replicas[CANDIDATE]
    replica.fault = Fault(0, "unsupported" if case == "client's fault" else "model_failed", "not this")
    more = {"number": 2} if case == "pinned" else {}
    if case == "too late":
        replica.latency_s = 1.0
        more = {"headers": {"X-Request-Timeout-Ms": "200"}}
    answer = by_rest(house.door, **more)
    assert {"client's fault": "not this", "too late": "timeout expired"}.get(case, "raised an error") in answer.error
    assert not house.replicas[STABLE].seen


def test_a_sequence_stays_where_it_began(house):
    house.begin(10_000)
    began = by_rest(house.door, parameters={"sequence_id": 5, "sequence_start": True})
    assert says(began)[0] == "2"
    house.replicas[CANDIDATE].fault = Fault(0, "model_failed", "no")
    assert by_rest(house.door, parameters={"sequence_id": 5}).error
    assert not house.replicas[STABLE].seen


def test_a_stream_is_rescued_before_its_first_part_and_not_after_it(house):
    house.begin(10_000)
    replica = house.replicas[CANDIDATE]
    replica.answers, replica.fault = 3, Fault(0, "model_failed", "no")
    house.replicas[STABLE].answers = 3
    whole = by_generate(house.door)
    assert says(whole) == ("1", "primary")
    replica.breaks_after = 1
    try:
        answer = house.door.post("/v2/models/mlp/generate_stream", json={"x": ROWS})
        assert answer.headers["x-model-version"] == "2"
        assert "raised an error" in answer.text.split("\n\n")[1]
    finally:
        replica.breaks_after = -1


def test_a_chat_whose_candidate_dies_after_words_ends_with_an_error(house):
    house.begin(10_000)
    answer = by_sse(house.door, text="break it")
    assert answer.version == "2"


OTHER = Signature([TensorSpec("other", "FP32", [-1, 16])], MLP.outputs, 64)
MORE = Signature([*MLP.inputs, TensorSpec("extra", "FP32", [-1, 1])], MLP.outputs, 64)
WIDER = Signature([TensorSpec("x", "FP32", [-1, -1])], [*MLP.outputs, TensorSpec("z", "FP32", [-1, 4])], 64)


def test_a_request_that_does_not_fit_stable_is_not_put_to_it(house):
    house.replicas[CANDIDATE].fault = Fault(0, "model_failed", "no")
    house.begin(10_000, signature=WIDER)
    assert says(by_rest(house.door)) == ("1", "primary")  # this one fits both
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}]}
    assert house.door.post(json=body).status_code == 500  # too narrow for stable
    assert house.door.post(json=request() | {"outputs": [{"name": "z"}]}).status_code == 500  # stable gives none
    assert house.door.post(json=request() | {"outputs": [{"name": "y"}]}).headers["x-model-version"] == "1"
    house.begin(10_000, signature=OTHER)
    body = {"inputs": [{"name": "other", "shape": [1, 16], "datatype": "FP32", "data": ROWS}]}
    assert house.door.post(json=body).status_code == 500


def test_a_candidate_that_fails_everything_takes_no_budget_of_retries(house):
    """Far more than the retries that an endpoint has in store, at once and one after the other."""
    house.begin(10_000)
    house.replicas[CANDIDATE].fault = Fault(0, "replica_lost", "gone")

    def ask(_):
        with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as client:
            url = f"{house.door.url}/v2/models/mlp/infer"
            return [client.post(url, json=request()).status_code for _ in range(25)]

    with ThreadPoolExecutor(8) as pool:
        codes = [code for found in pool.map(ask, range(8)) for code in found]
    assert codes == [200] * 200


def test_a_candidate_replica_that_leaves_hands_over_to_its_sibling(house):
    """Scaling down is no failure: another replica of the candidate answers, and nothing is held against it."""
    leaving, sibling = house.replicas[CANDIDATE], house.replica("r3", version=2)
    house.begin(10_000, more=["r3"])
    until(lambda: {by_rest(house.door).version for _ in range(3)} == {"2"} and len(sibling.seen) > 0)
    house.forget()
    leaving.fault, leaving.latency_s = Fault(0, "draining", "bye"), 0.5
    leaving.seen.clear()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(by_rest, house.door) for _ in range(8)]
        until(lambda: leaving.seen)
        time.sleep(0.2)
        house.loop.call_soon_threadsafe(leaving.goodbye)
        assert {says(one.result())[0] for one in asked} == {"2"}
    house.run(leaving.stop())
    house.run(leaving.start())
    found = house.counted()
    assert (found["canary"].errors, found["canary"].rescued) == (0, 0)
    assert found["canary"].retries >= 1
    assert "primary" not in found


def test_grpc_hides_a_crash_too(house):
    house.begin(10_000)
    house.replicas[CANDIDATE].kills_at = 77.0
    assert says(by_grpc(house.door, values=[77.0, *ROWS[1:]])) == ("1", "primary")
