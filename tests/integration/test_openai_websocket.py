"""`chat` and `completion` on the WebSocket of a real gateway process, beside all else that one connection carries.

What docs/websocket.md says is also run as it stands there: its examples, and a client that was written from it alone.
"""

import asyncio
import contextlib
import json
import re
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from websockets.sync.client import connect

from inference.errors import InvalidInput, NotFound
from inference.protocol import generation
from inference.protocol.messages import SequenceControl
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, VariantRoute
from inference.streaming import Stream, SyncStream
from tests.support.fake_language import FakeLanguage
from tests.support.gateway_house import House, until
from tests.support.stranger import Refused, Stranger

KEY = "ser_all.s2"


def takes(name, width):
    return Signature([TensorSpec(name, "FP32", [-1, width])], [TensorSpec("y", "FP32", [-1, -1])], max_batch_size=64)


@pytest.fixture(scope="module")
def house():
    found = House()
    replica = FakeLanguage(str(found.folder / "r1.sock"), name="r1")
    found.replicas["r1"] = found.run(replica.start())
    found.replica("plain")
    found.replica("several").answers = 3
    gateway = found.gateway()
    variants = [
        VariantRoute(1, "primary", 10_000, generation.language_signature(), [found.route()], adapters=["polite"])
    ]
    others = {
        "digits": (takes("x", 64), "plain"), "vad": (takes("audio", -1), "plain"), "speech": (takes("audio", -1), "several"),
        "smollm2": (generation.language_signature(), "r1"),
    }  # fmt: skip
    endpoints = [
        EndpointRoute(name, name, "s", False, 20_000, 100, [VariantRoute(1, "primary", 10_000, signature, [found.route(by)])])
        for name, (signature, by) in others.items()
    ]  # fmt: skip
    found.publish(found.table(variants, endpoints=endpoints))
    gateway.wait_live().wait_ready()
    for name in others:
        gateway.wait_ready(name)
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


async def test_a_language_model_a_decoupled_one_and_a_sequence_share_a_strangers_connection(house):
    url = f"ws://127.0.0.1:{house.gateways[0].port}/v2/stream"
    plain = house.replicas["plain"]

    async def talk(stranger, identity, text):
        body = {"model": "smollm2", "messages": [{"role": "user", "content": text}]}
        frames = [one async for one in stranger.ask(identity, {"type": "chat", "body": body, "credit": 1000})]
        assert frames[-1]["type"] == "done"
        return "".join(one["data"]["choices"][0]["delta"].get("content") or "" for one in frames[:-1])

    async def listen(stranger, identity):
        found = []
        given = [("audio", [1, 4], [5.0, 6.0, 7.0, 8.0])]
        async for frame in stranger.ask(identity, {"model": "speech", "credit": 1}, given):
            found.append((frame["type"], frame["final"], frame["outputs"][0]["data"]))
            await stranger.tell("credit", identity, n=1)
        return found

    async def speak(stranger, identity):
        for number in range(4):
            told = {"sequence_id": identity, "sequence_start": number == 0, "sequence_end": number == 3}
            given = [("audio", [1, 4], [float(number)] * 4)]
            frame = await stranger.one(f"{identity}-{number}", {"model": "vad", "parameters": told}, given)
            assert frame["outputs"][0]["data"] == [2.0 * number] * 4

    async with Stranger(url, KEY) as stranger:
        said, heard, _, _ = await asyncio.gather(
            talk(stranger, "c", "slow a b c"), listen(stranger, "s"), speak(stranger, 1), speak(stranger, "two")
        )
        assert said == "slow a b c"
        assert heard == [("response", number == 2, [10.0, 12.0, 14.0, 16.0]) for number in range(3)]
        for identity in (1, "two"):
            mine = [message.sequence for message in plain.seen if message.sequence and message.sequence.id == identity]
            assert mine == [SequenceControl(identity, start=n == 0, end=n == 3) for n in range(4)]
        assert (await stranger.one("m", {"type": "metadata", "model": "digits"}))["body"]["name"] == "digits"
        assert (await stranger.one("r", {"type": "ready", "model": "digits", "version": 9}))["ready"] is False
        with pytest.raises(Refused, match="not_found"):
            await stranger.one("n", {"model": "nothing", "inputs": []})
        waiting = asyncio.create_task(talk(stranger, "w", "slow" + " w" * 400))
        await asyncio.wait_for(stranger.one("before", {"type": "ready", "model": "digits"}), 30)  # "w" is under way
        await stranger.tell("cancel", "w")
        with pytest.raises(Refused, match="cancelled"):
            await waiting
        await stranger.tell("something new", "x")  # an error frame for nobody
        assert (await stranger.one("last", {"model": "digits"}, [("x", [1, 64], [1.0] * 64)]))["outputs"]


def examples():
    """The Python that docs/websocket.md shows, block by block."""
    text = (Path(__file__).parents[2] / "docs" / "websocket.md").read_text()
    blocks = re.findall(r"(?:^    .*\n|^\n)+", text, re.MULTILINE)
    return [textwrap.dedent(one).strip() for one in blocks if "import asyncio" in one or "import numpy" in one]


def test_the_example_without_our_client_runs_as_it_stands(house, capsys):
    code = examples()[1].replace(":8000", f":{house.gateways[0].port}").replace("ser_<id>.<secret>", KEY)
    exec(compile(code, "docs/websocket.md", "exec"), {})
    assert sorted(line.split()[0] for line in capsys.readouterr().out.splitlines()) == [str(n) for n in range(10)]


def test_the_example_of_our_client_runs_as_it_stands(house):
    code = examples()[0].replace(":8000", f":{house.gateways[0].port}")
    names = {}
    whole = "async def main(key, chunk, messages):\n" + textwrap.indent(code, "    ")
    exec(compile(whole, "docs/websocket.md", "exec"), names)
    asyncio.run(names["main"](KEY, np.zeros((1, 8), np.float32), say("hello there")["messages"]))


def test_what_the_module_shows_runs_as_it_stands(house, capsys):
    import inference.streaming

    shown = textwrap.dedent(inference.streaming.__doc__.split("\n\n", 1)[1].split("\n\nAn input")[0])
    code = shown.replace(":8000", f":{house.gateways[0].port}").replace("ser_<id>.<secret>", KEY)
    exec(compile(code, "inference/streaming", "exec"), {})
    assert capsys.readouterr().out == "[0.0, 0.0, 0.0, 0.0]\n"


def test_without_asyncio_there_are_chats_and_sequences_too(house, replica):
    before = len(replica.cancelled)
    with SyncStream(house.gateways[0].url, KEY) as stream:
        said = [
            one["choices"][0]["delta"].get("content") or ""
            for one in stream.chat("smollm2", say("a b")["messages"], credit=1)
        ]
        assert "".join(said) == "a b"
        assert "".join(one["choices"][0]["text"] for one in stream.completion("smollm2", "a b")) == "a b"
        for _ in stream.chat("smollm2", say("slow" + " w" * 400)["messages"]):
            break
        until(lambda: len(replica.cancelled) == before + 1, 5)
        with stream.sequence("vad", 70) as speaker:
            for number in range(2):
                found = speaker.infer({"audio": ("FP32", [1, 4], [float(number)] * 4)})
                assert found["y"].values == [2.0 * number] * 4
    told = [
        (m.sequence.start, m.sequence.end) for m in house.replicas["plain"].seen if m.sequence and m.sequence.id == 70
    ]
    assert told == [(True, False), (False, False), (False, True)]
