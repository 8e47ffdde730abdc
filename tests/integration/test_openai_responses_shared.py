"""Stored responses of several gateways: what one made all have, as long as there is a Valkey, and within its bounds."""

import contextlib
import signal
import time

import httpx
import openai
import pytest

from inference.gateway.openai.kept import KEPT_S, MAX_KEPT_BYTES, PAUSE_S, PREFIX, owner_of
from inference.protocol import generation
from inference.protocol.routes import VariantRoute
from tests.support.fake_language import FakeLanguage
from tests.support.gateway_house import House, key, until

KEY, OTHER = "ser_all.s2", "ser_one.s1"
SMALL = 40_000


@pytest.fixture(scope="module")
def house():
    found = House()
    replica = FakeLanguage(str(found.folder / "r1.sock"), name="r1")
    found.replicas["r1"] = found.run(replica.start())
    variants = [VariantRoute(1, "primary", 10_000, generation.language_signature(), [found.route()])]
    found.publish(found.table(variants, keys=[key("all", "s2", ["*"]), key("one", "s1", ["mlp"])]))
    for _ in range(2):
        found.gateway().wait_live().wait_ready()
    yield found
    found.close()


@pytest.fixture
def two(house):
    """The official client at each of two gateways."""
    with contextlib.ExitStack() as open_ones:
        yield [open_ones.enter_context(client(gateway)) for gateway in house.gateways[:2]]


@pytest.fixture
def frozen(house):
    """Stops Valkey in its tracks; it goes on when the test is over."""

    def freeze():
        house.valkey.process.send_signal(signal.SIGSTOP)

    yield freeze
    house.valkey.process.send_signal(signal.SIGCONT)
    until(house.valkey.answers)
    time.sleep(PAUSE_S + 0.1)  # for so long gateways leave a Valkey that failed them alone


def client(gateway, credential=KEY):
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=credential, max_retries=0)


def held(house, of="*"):
    """(bytes in Valkey by its own count, and as they lie there)."""
    counted = int(house.valkey.client.hget(f"{PREFIX}bytes", of if of == "*" else owner_of(of)) or 0)
    entries = house.valkey.client.keys(f"{PREFIX}{of if of == '*' else owner_of(of)}:resp_*")
    return counted, sum(house.valkey.client.strlen(one) for one in entries)


@pytest.mark.parametrize("stream", [False, True])
def test_what_one_gateway_made_another_has_at_once(house, two, stream):
    here, there = two
    for _ in range(10):
        made = here.responses.create(model="mlp", input="a b c", stream=stream)
        made = list(made)[-1].response if stream else made
        assert there.responses.retrieve(made.id).to_dict() == made.to_dict()
        after = there.responses.create(model="mlp", input="d", previous_response_id=made.id)
        last = here.responses.create(model="mlp", input="e", previous_response_id=after.id)
    told = [one["content"] for one in house.replicas["r1"].asked[-1].prompt.messages]
    assert told == ["a b c", "a b c", "d", "d", "e"]
    assert here.responses.retrieve(last.id).previous_response_id == after.id


def test_a_response_outlives_the_gateway_that_made_it(house, two):
    third = house.gateway().wait_live().wait_ready()
    with client(third) as gone:
        made = gone.responses.create(model="mlp", input="a b c")
    third.stop(signal.SIGKILL)
    assert two[0].responses.retrieve(made.id).output_text == "a b c"


def test_no_other_key_has_it_at_any_gateway(house, two):
    made = two[0].responses.create(model="mlp", input="secret")
    for gateway in house.gateways[:2]:
        with client(gateway, OTHER) as stranger:
            with pytest.raises(openai.NotFoundError):
                stranger.responses.retrieve(made.id)
            with pytest.raises(openai.NotFoundError):
                stranger.responses.delete(made.id)
            with pytest.raises(openai.BadRequestError) as found:
                stranger.responses.create(model="mlp", input="b", previous_response_id=made.id)
            assert found.value.code == "previous_response_not_found"
    assert two[1].responses.retrieve(made.id).output_text == "secret"


def test_what_is_deleted_at_one_is_gone_at_all(house, two):
    here, there = two
    made = here.responses.create(model="mlp", input="a b c")
    before = held(house)
    there.responses.delete(made.id)
    assert held(house)[0] < before[0]
    for gateway in two:
        with pytest.raises(openai.NotFoundError):
            gateway.responses.retrieve(made.id)
        with pytest.raises(openai.NotFoundError):
            gateway.responses.delete(made.id)
        with pytest.raises(openai.BadRequestError):
            gateway.responses.create(model="mlp", input="b", previous_response_id=made.id)


def test_what_is_not_to_be_stored_is_nowhere(house, two):
    before = set(house.valkey.client.keys(f"{PREFIX}*:resp_*"))
    two[0].responses.create(model="mlp", input="a", store=False)
    assert set(house.valkey.client.keys(f"{PREFIX}*:resp_*")) == before


def test_it_lies_in_valkey_for_an_hour(house, two):
    made = two[0].responses.create(model="mlp", input="a")
    name = f"{PREFIX}{owner_of('all')}:{made.id}"
    assert KEPT_S - 60 < house.valkey.client.ttl(name) <= KEPT_S
    rest = [one for one in house.valkey.client.keys(f"{PREFIX}*") if b":resp_" not in one]
    assert len(rest) >= 3
    assert all(KEPT_S < house.valkey.client.ttl(one) <= KEPT_S + 60 for one in rest)
    counted, lie = held(house)
    assert counted == lie < MAX_KEPT_BYTES


def test_what_no_gateway_wrote_is_no_response(house, two):
    name = f"{PREFIX}{owner_of('all')}:resp_1"
    house.valkey.client.set(name, b"nonsense", ex=60)
    with pytest.raises(openai.NotFoundError):
        two[0].responses.retrieve("resp_1")
    house.valkey.client.delete(name)


def test_the_oldest_make_room_and_nobody_drives_out_everybody(house):
    """One key may have a quarter of what there is. An answer of 500 words is about 6 KB in Valkey."""
    for name in house.valkey.client.keys(f"{PREFIX}*"):
        house.valkey.client.delete(name)
    gateway = house.gateway(SERINUS_SHARED_RESPONSES_BYTES=str(SMALL)).wait_live().wait_ready()
    other = house.gateways[0]
    with client(gateway, OTHER) as modest, client(gateway) as greedy, client(other) as elsewhere:
        kept = modest.responses.create(model="mlp", input="mine")
        made = [greedy.responses.create(model="mlp", input="w " * 500).id for _ in range(12)]
        assert greedy.responses.retrieve(made[0]).id == made[0], "its own memory has them all"
        assert elsewhere.responses.retrieve(made[-1]).id == made[-1]
        with pytest.raises(openai.NotFoundError):
            elsewhere.responses.retrieve(made[0])
        counted, lie = held(house, "all")
        assert 0 < counted == lie <= SMALL / 4
        assert held(house)[0] == held(house)[1] == counted + held(house, "one")[0]
    with client(other, OTHER) as modest:
        assert modest.responses.retrieve(kept.id).output_text == "mine"
    gateway.stop()


def test_nothing_is_shared_where_that_is_switched_off(house, two):
    gateway = house.gateway(SERINUS_SHARED_RESPONSES_BYTES="0").wait_live().wait_ready()
    before = set(house.valkey.client.keys(f"{PREFIX}*"))
    with client(gateway) as alone:
        made = alone.responses.create(model="mlp", input="a")
        assert alone.responses.retrieve(made.id).output_text == "a"
    assert set(house.valkey.client.keys(f"{PREFIX}*")) == before
    with pytest.raises(openai.NotFoundError):
        two[0].responses.retrieve(made.id)
    gateway.stop()


def test_chats_go_on_while_valkey_stands_still(house, two, frozen):
    here, there = two
    first = here.responses.create(model="mlp", input="a")
    frozen()
    began = time.monotonic()
    second = here.responses.create(model="mlp", input="b", previous_response_id=first.id)
    assert here.responses.retrieve(second.id).output_text == "b"
    assert time.monotonic() - began < 2, "one tenth of a second, and then it is not asked for a while"
    third = here.responses.create(model="mlp", input="c", previous_response_id=second.id)
    assert [one["content"] for one in house.replicas["r1"].asked[-1].prompt.messages] == ["a", "a", "b", "b", "c"]
    answer = httpx.get(f"{there.base_url}responses/{third.id}", headers={"Authorization": f"Bearer {KEY}"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert answer.headers["retry-after"] == "5"
    with pytest.raises(openai.InternalServerError, match="cannot be reached now"):
        there.responses.create(model="mlp", input="d", previous_response_id=first.id)
    with pytest.raises(openai.InternalServerError, match="cannot be reached now"):
        here.responses.delete(first.id)
    assert here.responses.retrieve(first.id).output_text == "a"


def test_a_valkey_that_comes_back_empty_is_used_again(house, two):
    here, there = two
    first = here.responses.create(model="mlp", input="a")
    house.valkey.kill()
    second = here.responses.create(model="mlp", input="b", previous_response_id=first.id)
    house.valkey.start()
    house.publish(house.now)
    time.sleep(PAUSE_S + 0.1)
    third = here.responses.create(model="mlp", input="c", previous_response_id=second.id)
    assert there.responses.retrieve(third.id).output_text == "c"
    with pytest.raises(openai.NotFoundError):
        there.responses.retrieve(second.id)  # made while it was away
