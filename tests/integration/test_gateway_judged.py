"""What a gateway counts for a rollout's judge, by real doors: time to the first part and between parts, the queue's wait,
answers that are no numbers, and scores that come back.
"""

import time

import httpx
import msgspec
import pytest

from inference.gateway import feedback_ids
from inference.protocol.messages import Fault
from inference.protocol.samples import LATENCY_EDGES_MS, bucket_of, quantile_ms
from tests.support.gateway_house import SECRET, until
from tests.support.rollout_house import (
    CANDIDATE,
    DOORS,
    KEY,
    STABLE,
    by_chat_frame,
    by_generate,
    by_rest,
    by_sse,
    fixtures,
    token,
)

SOON_MS, PACE_MS = 200, 60


opened, house = fixtures()


def between(counts, low_ms, high_ms):
    """Every value of the histogram lies there, as far as its buckets tell."""
    return all(bucket_of(low_ms) <= index <= bucket_of(high_ms) for index in counts)


def test_times_to_the_first_part_and_between_parts_are_counted_by_arm(house):
    house.begin(10_000)
    replica = house.replicas[CANDIDATE]
    replica.latency_s, replica.pace_s, replica.answers = SOON_MS / 1e3, PACE_MS / 1e3, 4
    house.forget()
    for _ in range(3):
        by_generate(house.door)
    found = house.counted()["canary"]
    assert (sum(found.first_counts.values()), sum(found.next_counts.values())) == (3, 9)
    assert between(found.first_counts, SOON_MS * 0.9, SOON_MS * 4)
    assert between(found.next_counts, PACE_MS * 0.8, PACE_MS * 5)
    text = house.door.get("/metrics").text
    labels = 'arm="canary",endpoint="mlp",version="2"'
    assert f"serinus_first_part_seconds_count{{{labels}}}" in text
    assert f"serinus_between_parts_seconds_count{{{labels}}}" in text


def test_a_single_answer_has_no_first_part(house):
    house.begin(0)
    house.forget()
    by_rest(house.door)
    found = house.counted()["primary"]
    assert (found.requests, found.first_counts, found.next_counts) == (1, {}, {})


@pytest.mark.parametrize("ask", [by_sse, by_chat_frame])
def test_tokens_of_chats_are_counted(house, ask):
    house.begin(0)
    house.forget()
    ask(house.door, text="slow five words in all")
    found = house.counted("lm")["primary"]
    assert sum(found.first_counts.values()) == 1
    assert sum(found.next_counts.values()) >= 4
    assert quantile_ms(found.next_counts, 0.5) >= 15  # its pace is 20 ms


def test_the_stable_versions_first_part_is_not_held_up_by_the_candidate(house):
    house.begin(10_000)
    house.replicas[CANDIDATE].latency_s = 0.5
    house.replicas[CANDIDATE].fault = Fault(0, "model_failed", "no")
    house.replicas[STABLE].answers = 2
    house.forget()
    assert by_generate(house.door).version == "1"
    found = house.counted()
    assert between(found["primary"].first_counts, 0, 300)
    assert found["canary"].first_counts == {}


def test_the_queues_wait_is_counted_in_the_latencys_buckets(house):
    house.begin(0)
    house.forget()
    for _ in range(5):
        by_rest(house.door)
    found = house.counted()["primary"]
    assert found.queue_counts == {0: 5}  # the fake replica says 1 us
    assert LATENCY_EDGES_MS[0] > 0.001
    assert found.queue_sum_ms == pytest.approx(0.005)


@pytest.mark.parametrize("ask", [by_rest, by_generate])
def test_answers_with_nan_are_counted_once(house, ask):
    house.begin(0)
    house.replicas[STABLE].is_invalid = True
    if ask is by_generate:
        house.replicas[STABLE].answers, house.replicas[STABLE].ends_empty = 3, True
    house.forget()
    for _ in range(2):
        assert not ask(house.door).error
    found = house.counted()["primary"]
    assert (found.requests, found.errors, found.invalid) == (2, 0, 2)
    assert 'serinus_invalid_outputs_total{arm="primary",endpoint="mlp",version="1"}' in house.door.get("/metrics").text


def test_an_answer_that_the_replica_refuses_for_nan_is_an_error_and_invalid_and_rescued(house):
    house.begin(10_000)
    house.replicas[CANDIDATE].fault = Fault(0, "invalid_output", "no")
    house.forget()
    assert by_rest(house.door).version == "1"
    found = house.counted()["canary"]
    assert (found.errors, found.invalid, found.rescued) == (1, 1, 1)


# -- scores


def score(house, identity, value, key=KEY, gateway=None):
    url = f"{(gateway or house.door).url}/v2/feedback/{identity}"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(url, json={"score": value}, headers=headers, timeout=20)


def id_of(answer):
    return answer.told.get("x-feedback-id") or answer.told["feedback_id"]


@pytest.mark.parametrize("door", DOORS)
def test_a_score_is_added_to_the_arm_that_answered(house, door):
    house.begin(10_000)
    endpoint = "lm" if door in {"openai", "sse", "chat frame"} else "mlp"
    first, second = DOORS[door](house.door), DOORS[door](house.door)
    if door in {"rest", "generate", "openai", "sse"}:
        assert first.told["x-request-id"] == id_of(first) != id_of(second)
        named = DOORS[door](house.door, headers={"X-Request-Id": "mine"})
        assert named.told["x-request-id"] == "mine"
        assert id_of(named)
    house.forget()
    taken = score(house, id_of(first), 1)
    assert taken.status_code == 200
    assert taken.json() == {"endpoint": endpoint, "version": 2, "arm": "canary", "score": 1.0}
    assert score(house, id_of(second), 0.25).status_code == 200
    assert score(house, id_of(first), 0).status_code == 409
    found = house.counted(endpoint)["canary"]
    assert (found.scores, found.score_sum, found.score_sq, found.requests) == (2, 1.25, 1.0625, 0)
    text = house.door.get("/metrics").text
    assert f'serinus_score_sum{{arm="canary",endpoint="{endpoint}",version="2"}}' in text


def test_scores_of_rescues_go_to_stable_and_those_of_pins_and_the_playground_apart(house):
    house.begin(10_000)
    house.replicas[CANDIDATE].fault = Fault(0, "model_failed", "no")
    assert score(house, id_of(by_rest(house.door)), 1).json()["arm"] == "primary"
    house.replicas[CANDIDATE].fault = None
    assert score(house, id_of(by_rest(house.door, number=2)), 1).json()["arm"] == "pinned"
    mine = token("ada", "mlp", "playground")
    assert score(house, id_of(by_rest(house.door, key=mine)), 1, mine).json()["arm"] == "playground"


def test_nothing_is_signed_without_a_rollout(house):
    house.begin(0, steers=False)
    answer = by_rest(house.door)
    assert "x-feedback-id" not in answer.told
    assert answer.told["x-request-id"]


def test_ids_that_are_none_are_refused_in_words(house):
    house.begin(0)
    good = id_of(by_rest(house.door))
    text, _, mark = good.rpartition(".")
    forged = text.replace("mlp.1.", "mlp.2.") + f".{mark}"
    for identity in (forged, good[:-1] + ("A" if good[-1] != "A" else "B"), f"{text}.{'A' * 16}"):
        answer = score(house, identity, 1)
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "not_found"), identity
        assert "X-Feedback-Id" in answer.json()["error"]
    for identity in ("nonsense", good[:-1], good + "A", "mlp", "%00", good.replace("mlp", "nobody")):
        assert score(house, identity, 1).status_code == 404
    assert score(house, good, 1, key="").status_code == 401
    assert score(house, good, 1, key="ser_one.wrong").status_code == 401
    other = id_of(by_sse(house.door))
    assert score(house, other, 1, key="ser_one.s1").status_code == 403  # it may use mlp alone
    for value in (1.5, -0.1, 2):
        assert score(house, good, value).status_code == 400
    for body in (b"", b"{}", b'{"score": "high"}', b'{"score": 1, "more": 2}', b'{"score": NaN}'):
        url = f"{house.door.url}/v2/feedback/{good}"
        answer = httpx.post(url, content=body, headers={"Authorization": f"Bearer {KEY}"})
        assert (answer.status_code, answer.headers["x-error-code"]) == (400, "malformed"), body
    assert httpx.get(f"{house.door.url}/v2/feedback/{good}").status_code == 405
    assert score(house, good, 1, key="ser_one.s1").status_code == 200  # none of this has used it up


def test_an_id_of_yesterday_is_too_old(house):
    house.begin(0)
    for age_s, status in ((86_300, 200), (86_500, 400), (-1000, 400)):
        text = f"mlp.1.p.{int(time.time() - age_s):x}.{abs(age_s):x}"
        answer = score(house, f"{text}.{feedback_ids.sign(SECRET.encode(), text)}", 1)
        assert answer.status_code == status, answer.text


def test_an_id_counts_once_over_all_gateways_and_again_nowhere_without_valkey(house):
    house.begin(0)
    other = house.gateway().wait_live().wait_ready()
    until(lambda: other.get("/v2/models/mlp/versions/2/ready").status_code == 200)
    identity, second = id_of(by_rest(house.door)), id_of(by_rest(house.door))
    assert score(house, identity, 1, gateway=other).status_code == 200
    assert score(house, identity, 1).status_code == 409
    house.valkey.kill()
    try:
        assert score(house, second, 1).status_code == 200
        assert score(house, second, 1).status_code == 409
        assert by_rest(house.door).version == "1"
    finally:
        house.valkey.start()
        house.publish(house.now)
    until(lambda: by_rest(house.door) and house.samples(), 15)  # samples find their way again
    house.gateways.remove(other)
    other.stop()


def test_a_gateway_without_a_secret_signs_nothing(house):
    house.begin(0)
    house.generation += 1
    house.publish(msgspec.structs.replace(house.now, generation=house.generation, token_secret=""))
    until(lambda: "x-feedback-id" not in by_rest(house.door).told)
    house.begin(0)
    until(lambda: "x-feedback-id" in by_rest(house.door).told)
