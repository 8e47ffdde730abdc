"""`chat` and `completion` on the WebSocket of a real gateway process, with a fake language replica behind it."""

import asyncio
import contextlib
import json
import time

import pytest
from websockets.sync.client import connect

from inference.errors import InvalidInput, NotFound
from inference.protocol import generation
from inference.protocol.routes import VariantRoute
from inference.streaming import Stream
from tests.support.fake_language import FakeLanguage
from tests.support.gateway_house import House, until

KEY = "ser_all.s2"


@pytest.fixture(scope="module")
def house():
    found = House()
    replica = FakeLanguage(str(found.folder / "r1.sock"), name="r1")
    found.replicas["r1"] = found.run(replica.start())
    gateway = found.gateway()
    variants = [
        VariantRoute(1, "primary", 10_000, generation.language_signature(), [found.route()], adapters=["polite"])
    ]
    found.publish(found.table(variants))
    gateway.wait_live().wait_ready()
    yield found
    found.close()


@pytest.fixture
def replica(house):
    return house.replicas["r1"]


@contextlib.contextmanager
def opened(house, path="/v2/stream"):
    url = house.gateways[0].url.replace("http", "ws") + path
    with connect(url, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
        yield lambda **frame: socket.send(json.dumps(frame)), lambda: json.loads(socket.recv(timeout=10))


def say(text, **more):
    return {"model": "mlp", "messages": [{"role": "user", "content": text}]} | more


def until_done(receive, identity):
    found = []
    while True:
        frame = receive()
        assert frame["id"] == identity
        if frame.get("type") != "chunk":
            return found, frame
        found.append(frame["data"])


def test_a_chat_comes_in_chunks_and_ends_with_done(house):
    with opened(house) as (send, receive):
        send(type="chat", id="1", body=say("a b", stream_options={"include_usage": True}))
        chunks, last = until_done(receive, "1")
    assert last == {"type": "done", "id": "1", "model_version": "1", "rollout_arm": "primary"}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [one["choices"][0]["delta"]["content"] for one in chunks[1:-1]] == ["a", " b"]
    assert chunks[-1]["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("identity", ["100%", "%d", "%b%s", '"\\', "é\n"])
def test_an_id_may_hold_any_character(house, identity):
    with opened(house) as (send, receive):
        for kind, more in (("chat", say("a b")), ("completion", {"model": "mlp", "prompt": "a b"})):
            send(type=kind, id=identity, body=more)
            chunks, last = until_done(receive, identity)
            assert last["type"] == "done"
            assert chunks[-1]["id"].endswith(identity)


def test_the_address_or_the_frame_may_name_the_model(house, replica):
    with opened(house, "/v2/models/mlp/stream") as (send, receive):
        send(type="completion", id="c", body={"prompt": "a b", "max_tokens": 1})
        chunks, _ = until_done(receive, "c")
        assert "".join(one["choices"][0]["text"] for one in chunks) == "a"
        send(type="chat", id="d", body=say("a", model="mlp:polite"))
        until_done(receive, "d")
        assert replica.asked[-1].adapter == "polite"
        send(type="chat", id="f", body=say("a", model="mlp:rude"))
        assert until_done(receive, "f")[1]["error"].startswith("The model 'mlp:rude' does not exist")
        send(type="chat", id="e", body=say("a", model="other"))
        assert until_done(receive, "e")[1]["code"] == "invalid_input"


def test_errors_end_their_request_alone(house):
    with opened(house) as (send, receive):
        for body, code in (
            (say("a", temperature=9), "invalid_input"),
            (say("a", model="nope"), "not_found"),
            ({"model": "mlp"}, "invalid_input"),
            (say("break a b c"), "out_of_memory"),
            (say("fail"), "overloaded"),
        ):
            send(type="chat", id="x", body=body)
            assert until_done(receive, "x")[1]["code"] == code
        send(type="chat", id="x")
        assert "'body'" in until_done(receive, "x")[1]["error"]
        send(type="completion", id="x", body={"model": "mlp", "prompt": ["a", "b"]})
        assert "a frame for each" in until_done(receive, "x")[1]["error"]
        send(type="chat", id="x", body=say("a"))
        assert until_done(receive, "x")[1]["type"] == "done"


def test_cancel_ends_the_generation_at_once(house, replica):
    before = len(replica.cancelled)
    with opened(house) as (send, receive):
        send(type="chat", id="1", body=say("slow" + " w" * 500))
        receive()
        send(type="cancel", id="1")
        assert until_done(receive, "1")[1]["code"] == "cancelled"
    until(lambda: len(replica.cancelled) == before + 1, 1)


def test_a_connection_that_closes_ends_all_its_chats(house, replica):
    before = len(replica.cancelled)
    with opened(house) as (send, receive):
        for identity in "123":
            send(type="chat", id=identity, body=say("slow" + " w" * 400))
        assert {receive()["id"] for _ in range(9)} == {"1", "2", "3"}
    until(lambda: len(replica.cancelled) == before + 3, 2)


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(house):
    with opened(house) as (send, receive):
        send(type="chat", id="x", body=say("w " * 513))
        told = until_done(receive, "x")[1]
    assert told["code"] == "context_length_exceeded"
    assert "513" in told["error"]
    assert "512" in told["error"]


def test_without_credit_nothing_more_comes_and_others_go_on(house):
    with opened(house) as (send, receive):
        send(type="chat", id="1", credit=1, body=say("a b c"))
        assert [receive()["data"]["choices"][0]["delta"].get("content") for _ in range(2)] == ["", "a"]
        send(type="chat", id="2", body=say("z"))
        assert until_done(receive, "2")[1]["type"] == "done"
        send(type="credit", id="1", n=1)  # owed for the role
        send(type="ping", id="p")
        assert receive()["type"] == "pong"
        send(type="credit", id="1", n=2)
        chunks, last = until_done(receive, "1")
        assert [one["choices"][0]["delta"]["content"] for one in chunks] == [" b", " c"]
        assert last["type"] == "done"


def test_our_client_iterates_over_chunks(house, replica):
    async def talk():
        async with Stream(house.gateways[0].url, KEY) as stream:
            found = [one async for one in stream.chat("mlp", say("a b")["messages"], temperature=0.0)]
            text = "".join(one["choices"][0]["delta"].get("content") or "" for one in found)
            with pytest.raises(InvalidInput):
                async for _ in stream.chat("mlp", say("a")["messages"], top_p=7):
                    pass
            with pytest.raises(NotFound):
                async for _ in stream.chat("nope", say("a")["messages"]):
                    pass
            before = len(replica.cancelled)
            async with contextlib.aclosing(stream.chat("mlp", say("slow" + " w" * 500)["messages"])) as left:
                async for _ in left:
                    break
            end = time.monotonic() + 2
            while len(replica.cancelled) == before and time.monotonic() < end:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert len(replica.cancelled) == before + 1
            return text

    assert asyncio.run(talk()) == "a b"
    assert replica.asked[0] is not None
