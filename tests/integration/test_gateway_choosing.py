"""Which version answers, by every door of a real gateway process: matches, shares, pins, and what is counted where."""

import httpx
import pytest

from inference.protocol.routes import Match
from tests.support.gateway_house import request, until
from tests.support.rollout_house import DOORS, KEY, TENSOR_DOORS, by_grpc, by_rest, by_websocket, fixtures, says, token

STABLE_SAYS, CANDIDATE_SAYS = ("1", "primary"), ("2", "canary")


opened, house = fixtures()


@pytest.mark.parametrize("door", DOORS)
def test_a_header_sends_to_the_candidate(house, door):
    house.begin(0, Match("header", "X-Team", values=["blue", "green"]), Match("header", "x-beta", prefix="yes"))
    ask = DOORS[door]
    assert says(ask(house.door)) == STABLE_SAYS
    for headers in ({"X-Team": "green"}, {"x-beta": "yes, please"}, {"X-Team": "red", "X-Beta": "yes"}):
        assert says(ask(house.door, headers=headers)) == CANDIDATE_SAYS, headers
    for headers in ({"X-Team": "red"}, {"X-Beta": "no"}):
        assert says(ask(house.door, headers=headers)) == STABLE_SAYS, headers


@pytest.mark.parametrize("door", TENSOR_DOORS)
def test_a_parameter_sends_to_the_candidate(house, door):
    house.begin(0, Match("parameter", "tier", values=["gold", "7"]), Match("parameter", "any"))
    ask = TENSOR_DOORS[door]
    assert says(ask(house.door, parameters={"tier": "lead"})) == STABLE_SAYS
    assert says(ask(house.door, parameters={"tier": "gold"})) == CANDIDATE_SAYS
    assert says(ask(house.door, parameters={"any": "thing"})) == CANDIDATE_SAYS
    assert says(ask(house.door, parameters={"tier": "gold"}, number=1))[0] == "1"


def test_a_number_and_a_switch_are_matched_as_json_writes_them(house):
    house.begin(0, Match("parameter", "level", values=["7", "0.5", "true"]))
    for value, wanted in ((7, "2"), (0.5, "2"), (True, "2"), (8, "1"), (False, "1"), ("7", "2")):
        assert by_rest(house.door, parameters={"level": value}).version == wanted, value


@pytest.mark.parametrize("door", DOORS)
def test_a_key_or_a_user_sends_to_the_candidate(house, door):
    endpoint = "mlp" if door in TENSOR_DOORS else "lm"
    house.begin(0, Match("key", values=["all"]), Match("user", values=["ada"]))
    ask = DOORS[door]
    assert says(ask(house.door)) == CANDIDATE_SAYS
    if endpoint == "mlp":
        assert says(ask(house.door, key="ser_one.s1")) == STABLE_SAYS
    assert says(ask(house.door, key=token("ada", endpoint, "console")))[0] == "2"
    assert says(ask(house.door, key=token("bob", endpoint, "console")))[0] == "1"


def test_a_share_of_those_who_match_is_chosen_by_their_value_and_never_goes_back(house):
    def candidates(share_bp):
        house.begin(0, Match("header", "x-account", share_bp=share_bp))
        with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}) as client:
            url = f"{house.door.url}/v2/models/mlp/infer"
            accounts = [f"account-{number}" for number in range(200)]
            told = {
                one: client.post(url, json=request(), headers={"X-Account": one}).headers["x-model-version"]
                for one in accounts
            }
            assert client.post(url, json=request()).headers["x-model-version"] == "1"
        return {one for one, version in told.items() if version == "2"}

    few, more = candidates(2000), candidates(5000)
    assert 18 <= len(few) <= 64  # 200 draws of 0.2: five standard deviations
    assert 64 <= len(more) <= 136
    assert few < more


@pytest.mark.parametrize("door", DOORS)
def test_who_belongs_to_a_candidate_without_a_replica_is_answered_by_stable_at_once(house, door):
    house.begin(9000, Match("header", "x-beta"), candidate=False)
    ask = DOORS[door]
    for headers in ({"X-Beta": "1"}, *({"X-Session-Id": f"s{number}"} for number in range(6))):
        assert says(ask(house.door, headers=headers)) == STABLE_SAYS
    house.begin(9000, Match("header", "x-beta"))
    assert says(ask(house.door, headers={"X-Beta": "1"})) == CANDIDATE_SAYS


def test_a_candidate_with_all_the_traffic_and_no_replica_leaves_it_to_stable(house):
    house.begin(10_000, candidate=False)
    assert says(by_rest(house.door)) == STABLE_SAYS
    house.begin(10_000)
    assert says(by_rest(house.door)) == CANDIDATE_SAYS


@pytest.mark.parametrize("door", DOORS)
def test_a_header_pins_a_version_where_that_is_allowed(house, door):
    house.begin(0)
    ask = DOORS[door]
    assert says(ask(house.door, headers={"X-Model-Version": "2"})) == CANDIDATE_SAYS
    assert says(ask(house.door, headers={"X-Model-Version": "2"}, number=2)) == CANDIDATE_SAYS
    assert "version 9" in ask(house.door, headers={"X-Model-Version": "9"}).error or door in {"openai", "sse"}
    assert ask(house.door, headers={"X-Model-Version": "9"}).error
    assert "must be a version's number" in ask(house.door, headers={"X-Model-Version": "newest"}).error
    assert "send one of them" in ask(house.door, headers={"X-Model-Version": "2"}, number=1).error


@pytest.mark.parametrize("door", TENSOR_DOORS)
def test_a_header_pins_nothing_where_the_endpoint_forbids_it(house, door):
    house.begin(0, mlp={"may_pin": False})
    answer = TENSOR_DOORS[door](house.door, headers={"X-Model-Version": "2"})
    assert "may_pin" in answer.error
    if door in {"rest", "generate"}:
        assert house.door.post(headers={"X-Model-Version": "2"}).status_code == 403
    assert says(TENSOR_DOORS[door](house.door)) == STABLE_SAYS


def test_pins_and_the_playground_are_counted_apart(house):
    house.begin(5000)
    house.forget()
    for number in (1, 2, 2):
        by_rest(house.door, number=number)
    by_grpc(house.door, headers={"x-model-version": "2"})
    for number in range(3):
        by_rest(house.door, key=token("ada", "mlp", "playground"), headers={"X-Session-Id": f"s{number}"})
    by_rest(house.door, key=token("ada", "mlp", "playground"), number=2)
    by_rest(house.door, key=token("ada", "mlp", "batch"))
    found = house.counted()
    assert (found["pinned"].requests, found["playground"].requests) == (4, 4)
    assert sum(found[arm].requests for arm in ("primary", "canary") if arm in found) == 1
    text = house.door.get("/metrics").text
    assert 'serinus_requests_total{arm="pinned",endpoint="mlp",version="2"}' in text


def test_those_who_wait_for_a_version_that_is_gone_are_answered_by_another(house):
    import threading

    house.begin(0)
    house.run(house.replicas["r1"].stop())
    house.run(house.replicas["r2"].stop())
    until(lambda: house.door.get("/v2/models/mlp/ready").status_code == 400)
    answers = []
    asker = threading.Thread(target=lambda: answers.append(by_rest(house.door)))
    asker.start()
    until(lambda: "serinus_requests_in_flight 1.0" in house.door.get("/metrics").text)
    house.run(house.replicas["r2"].start())
    house.begin(5000)  # the candidate is there before stable is back, and has a share now
    asker.join(10)
    house.run(house.replicas["r1"].start())
    house.door.wait_ready()
    assert says(answers[0]) == CANDIDATE_SAYS


def test_a_sequence_on_a_websocket_begins_where_its_own_id_puts_it(house):
    """Its frame is read again when that is another version than the connection's own."""
    house.begin(5000)
    seen = set()
    for number in range(1, 13):
        told = {"sequence_id": number, "sequence_start": True}
        first = says(by_websocket(house.door, parameters=told, headers={"X-Session-Id": "me"}))
        for _ in range(2):
            again = by_websocket(house.door, parameters={"sequence_id": number}, headers={"X-Session-Id": "me"})
            assert says(again) == first
        seen.add(first)
    assert seen == {STABLE_SAYS, CANDIDATE_SAYS}
