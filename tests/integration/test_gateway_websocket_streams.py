"""Streams of answers, credit, cancel, sequences, verbs and the open address, on a real gateway process."""

import asyncio
import json
import struct
from pathlib import Path

import pytest
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from inference.protocol.messages import SequenceControl
from inference.protocol.routes import EndpointRoute, VariantRoute
from tests.support.gateway_house import BIG, MLP, TEXT, House, key, request, until
from tests.support.streams import unchanged_while_others_talk

KEY = ["serinus.v1", "serinus.key.ser_all.s2"]
ONE = ["serinus.v1", "serinus.key.ser_one.s1"]


@pytest.fixture(scope="module")
def house():
    found = House()
    for name in ("r1", "big", "text"):
        found.replica(name)
    found.replica("r2", version=2)
    found.others = [
        EndpointRoute(name, name, "s", name == "big", 20_000, 1000, [VariantRoute(1, "primary", 10_000, signature, [found.route(name)])])
        for name, signature in (("big", BIG), ("text", TEXT))
    ]  # fmt: skip
    found.variants = [
        VariantRoute(1, "primary", 10_000, MLP, [found.route()]),
        VariantRoute(2, "canary", 0, MLP, [found.route("r2")]),
    ]
    found.publish(found.table(found.variants, endpoints=found.others, queue_limit=200, timeout_ms=20_000))
    found.gateway().wait_live().wait_ready().wait_ready("big").wait_ready("text")
    yield found
    found.close()


@pytest.fixture
def replica(house):
    yield house.replicas["r1"]
    for one in house.replicas.values():
        one.latency_s = 0.0


@pytest.fixture
def connect(house):
    def make(path="models/mlp/stream", subprotocols=KEY, **more):
        url = f"ws://127.0.0.1:{house.gateways[0].port}/v2/{path}"
        return websockets.connect(url, subprotocols=subprotocols, max_size=None, compression=None, **more)

    return make


async def take(stream):
    return json.loads(await asyncio.wait_for(stream.recv(), 10))


async def ask(stream, body):
    await stream.send(json.dumps(body))
    return await take(stream)


def often(identity, parts, **more):
    return request(identity=identity) | {"parameters": {"parts": parts} | more.pop("parameters", {})} | more


async def until_last(stream, identity):
    found = []
    while True:
        frame = await take(stream)
        if frame.get("id") == identity:
            found.append(frame)
            if "error" in frame or frame.get("final", True):
                return found


async def test_several_answers_come_as_responses_and_end_with_a_final_one(connect):
    async with connect() as stream:
        await stream.send(json.dumps(often("s", 5)))
        frames = await until_last(stream, "s")
        assert [frame["type"] for frame in frames] == ["response"] * 6
        assert [frame["final"] for frame in frames] == [False] * 5 + [True]
        assert [frame["outputs"][0]["data"] for frame in frames[:-1]] == [[float(n)] for n in range(5)]
        assert frames[-1]["outputs"] == []
        assert "outputs" in await ask(stream, request(identity="s"))


async def test_streams_and_single_answers_share_a_connection(connect, replica):
    replica.latency_s = 0.02
    async with connect() as stream:
        for name in ("a", "b"):
            await stream.send(json.dumps(often(name, 10)))
        await stream.send(json.dumps(request(identity="c")))
        seen = [await take(stream) for _ in range(23)]
        assert sorted({frame["id"] for frame in seen}) == ["a", "b", "c"]
        order = [frame["id"] for frame in seen if frame["id"] != "c"]
        assert order.index("b") < 10, "one stream does not wait for the other"


async def test_a_stream_to_a_binary_frame_is_binary(connect):
    tensor = {"name": "x", "shape": [1, 16], "datatype": "FP32", "parameters": {"binary_data_size": 64}}
    head = json.dumps({"id": "b", "inputs": [tensor], "parameters": {"parts": 2}}).encode()
    async with connect() as stream:
        await stream.send(struct.pack("<I", len(head)) + head + bytes(64))
        for number in range(3):
            data = await asyncio.wait_for(stream.recv(), 5)
            size = struct.unpack_from("<I", data)[0]
            assert json.loads(data[4 : 4 + size])["final"] is (number == 2)
            assert data[4 + size :] == (struct.pack("<f", number) if number < 2 else b"")


async def test_no_more_answers_come_than_were_granted(connect, replica):
    async with connect() as stream:
        await stream.send(json.dumps(often("c", 40, credit=2)))
        assert [(await take(stream))["outputs"][0]["data"] for _ in range(2)] == [[0.0], [1.0]]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.recv(), 0.3)
        assert replica.pauses > 0, "who grants nothing pauses the replica"
        await stream.send(json.dumps({"type": "credit", "id": "c", "n": 3}))
        assert [(await take(stream))["outputs"][0]["data"] for _ in range(3)] == [[2.0], [3.0], [4.0]]
        assert "outputs" in await ask(stream, request(identity="other")), "others go on meanwhile"
        await stream.send(json.dumps({"type": "credit", "id": "c", "n": 1000}))
        frames = await until_last(stream, "c")
        assert [frame["outputs"][0]["data"] for frame in frames[:-1]] == [[float(n)] for n in range(5, 40)]
        assert frames[-1]["final"]


async def test_credit_for_what_is_not_there_is_ignored(connect):
    async with connect() as stream:
        await stream.send(json.dumps({"type": "credit", "id": "nobody", "n": 1}))
        assert "outputs" in await ask(stream, request(identity="1"))


async def test_without_credit_a_request_ends_with_its_deadline(connect):
    async with connect() as stream:
        wanted = often("d", 40, credit=1, parameters={"timeout": 400_000})
        await stream.send(json.dumps(wanted))
        frames = await until_last(stream, "d")
        assert (len(frames), frames[-1].get("code")) == (2, "deadline_exceeded")


async def test_a_cancelled_stream_ends_with_exactly_one_last_frame(connect, replica):
    replica.latency_s = 0.01
    before = len(replica.cancelled)
    async with connect() as stream:
        await stream.send(json.dumps(often("x", 1000)))
        await take(stream)
        await stream.send(json.dumps({"type": "cancel", "id": "x"}))
        frames = await until_last(stream, "x")
        assert frames[-1]["code"] == "cancelled"
        await asyncio.to_thread(until, lambda: len(replica.cancelled) > before, 2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.recv(), 0.3)


async def test_answers_and_cancels_that_cross_give_one_last_frame_each(connect):
    async with connect() as stream:
        ids = [str(number) for number in range(400)]
        for identity in ids:
            await stream.send(json.dumps(request(identity=identity)))
            await stream.send(json.dumps({"type": "cancel", "id": identity}))
        seen: dict[str, int] = {}
        for _ in ids:
            frame = await take(stream)
            assert "outputs" in frame or frame["code"] == "cancelled"
            seen[frame["id"]] = seen.get(frame["id"], 0) + 1
        assert seen == dict.fromkeys(ids, 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.recv(), 0.3)


async def test_sequence_parameters_reach_the_replica_in_order(connect, replica):
    async with connect() as stream:
        for number in range(5):
            parameters = {"sequence_id": 7, "sequence_start": number == 0, "sequence_end": number == 4}
            await stream.send(json.dumps(request(identity=str(number)) | {"parameters": parameters}))
        for _ in range(5):
            assert "outputs" in await take(stream)
        sent = [message.sequence for message in replica.seen[-5:]]
        assert sent == [SequenceControl(7, start=n == 0, end=n == 4) for n in range(5)]
        await ask(stream, request(identity="n") | {"parameters": {"sequence_id": "by-name"}})
        assert replica.seen[-1].sequence == SequenceControl("by-name")


async def test_generate_takes_values_by_name(connect, house):
    async with connect("models/text/stream") as stream:
        answer = await ask(stream, {"type": "generate", "id": "g", "text": "hello", "temperature": 0.5})
        assert answer == {"model_name": "text", "model_version": "1", "id": "g", "y": "hello"}
        assert house.replicas["text"].seen[-1].parameters == {"temperature": 0.5}
        answer = await ask(stream, {"type": "generate", "id": "h", "text": [["a"]] * 9})
        assert answer["code"] == "invalid_input"
        answer = await ask(stream, {"type": "generate", "id": "i", "text": [["a"], ["b"]]})
        assert answer["y"] == ["a", "b"]
        await stream.send(json.dumps({"type": "generate", "id": "s", "text": "x", "parameters": {"parts": 2}}))
        frames = await until_last(stream, "s")
        assert [frame["final"] for frame in frames] == [False, False, True]


async def test_metadata_and_readiness_need_no_http(connect, house):
    async with connect() as stream:
        answer = await ask(stream, {"type": "metadata", "id": "m"})
        assert (answer["type"], answer["id"], answer["body"]["name"]) == ("metadata", "m", "mlp")
        assert answer["body"] == house.gateways[0].get("/v2/models/mlp").json()
        assert await ask(stream, {"type": "ready", "id": "r"}) == {"type": "ready", "id": "r", "ready": True}
        answer = await ask(stream, {"type": "ready", "id": "v", "version": 9})
        assert answer == {"type": "ready", "id": "v", "ready": False}
    async with connect("stream") as stream:
        assert (await ask(stream, {"type": "metadata", "id": "s"}))["body"]["name"] == "serinus"
        assert (await ask(stream, {"type": "ready", "id": "r"}))["ready"] is True
        assert (await ask(stream, {"type": "metadata", "id": "n", "model": "nope"}))["code"] == "not_found"
        for strange in ("mlp/infer", "../health/live", "mlp%2f", "", "a\nb"):
            answer = await ask(stream, {"type": "config", "id": "n", "model": strange})
            assert answer["code"] in {"not_found", "unsupported"}, strange


async def test_pings_of_both_kinds_are_answered(connect):
    async with connect() as stream:
        assert await ask(stream, {"type": "ping"}) == {"type": "pong"}
        assert await ask(stream, {"type": "ping", "id": "p"}) == {"type": "pong", "id": "p"}
        await asyncio.wait_for(await stream.ping(b"are you there"), 5)


async def test_the_open_address_takes_any_model_the_key_may_use(connect):
    async with connect("stream") as stream:
        assert (await ask(stream, request(identity="1") | {"model": "mlp"}))["model_name"] == "mlp"
        assert (await ask(stream, request(identity="2") | {"model": "mlp", "version": 2}))["model_version"] == "2"
        assert (await ask(stream, request(identity="3") | {"model": "mlp", "version": "9"}))["code"] == "not_found"
        assert (await ask(stream, request(identity="4")))["code"] == "invalid_input"
        assert (await ask(stream, request(identity="5") | {"model": "nope"}))["code"] == "not_found"
        assert (await ask(stream, {"type": "generate", "id": "6", "model": "text", "text": "a"}))["y"] == "a"
    async with connect("stream", ONE) as stream:
        assert (await ask(stream, {"type": "generate", "id": "1", "model": "text", "text": "a"}))["code"] == "forbidden"
        assert "outputs" in await ask(stream, request(identity="2") | {"model": "mlp"}), "the connection goes on"


@pytest.mark.parametrize("subprotocols", [None, ["serinus.v1"], ["serinus.v1", "serinus.key.ser_all.wrong"]])
async def test_the_open_address_needs_a_key(connect, subprotocols):
    with pytest.raises(InvalidStatus) as caught:
        async with connect("stream", subprotocols):
            pass
    assert caught.value.response.status_code == 403


async def test_a_key_that_is_revoked_closes_the_open_address(connect, house):
    async with connect("stream", ONE) as stream:
        assert "outputs" in await ask(stream, request(identity="1") | {"model": "mlp"})
        house.publish(house.table(house.variants, endpoints=house.others, keys=[key("all", "s2", ["*"])]))
        async with asyncio.timeout(20):
            while "error" not in (answer := await ask(stream, request(identity="2") | {"model": "mlp"})):
                pass
        house.publish(house.table(house.variants, endpoints=house.others, queue_limit=200, timeout_ms=20_000))
        assert answer["code"] == "unauthenticated"
        with pytest.raises(ConnectionClosed) as caught:
            await take(stream)
        assert caught.value.rcvd.code == 1008
    house.gateways[0].wait_ready()


async def test_a_stream_nobody_reads_pauses_its_replica_and_no_more(connect, house, replica):
    def rss():
        return int(Path(f"/proc/{house.gateways[0].process.pid}/statm").read_text().split()[1]) * 4096

    big = house.replicas["big"]
    big.latency_s = 0.002
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}
    before, sent_before, cancelled = rss(), big.parts_sent, len(big.cancelled)
    async with connect("models/big/stream", max_queue=1) as slow, connect() as quick:
        slow.transport.pause_reading()
        parameters = {"parts": 2000, "part_bytes": 256 << 10, "binary_data_output": True}
        head = json.dumps({"id": "s", "inputs": [tensor], "parameters": parameters}).encode()
        await slow.send(struct.pack("<I", len(head)) + head)
        await asyncio.to_thread(until, lambda: big.parts_sent > sent_before)
        await unchanged_while_others_talk(lambda: big.parts_sent, quick)
        assert big.parts_sent - sent_before < 100, "512 MB were asked for"
        assert rss() - before < 64 << 20
        slow.transport.abort()
    await asyncio.to_thread(until, lambda: len(big.cancelled) > cancelled, 2)


async def test_a_client_that_asks_and_reads_nothing_is_not_read(connect, house):
    """Bad frames are answered too: whoever sends them without reading the answers is not read any further."""
    async with connect(max_queue=1) as stream, connect() as quick:
        stream.transport.pause_reading()
        sent = 0

        async def flood():
            nonlocal sent
            for _ in range(400):
                await stream.send("{" + " " * 60_000)
                await stream.send('{"type":"' + "x" * 500_000 + '","id":"' + "y" * 500_000 + '"}')
                sent += 1

        task = asyncio.create_task(flood())
        await unchanged_while_others_talk(lambda: sent, quick)
        assert sent < 400
        task.cancel()
        stream.transport.abort()


async def test_a_connection_that_is_full_still_takes_credit_and_cancel(connect, replica):
    """64 requests that wait for credit: who could not grant it any more would have to wait for their deadlines."""
    before = len(replica.seen)
    async with connect() as stream:
        for number in range(66):
            await stream.send(json.dumps(often(str(number), 1, credit=0)))
            if number == 63:
                await stream.send(json.dumps({"type": "ping", "id": "p"}))
        assert (await take(stream))["type"] == "pong"
        assert len(replica.seen) - before <= 64
    async with connect() as stream:
        for number in range(64):
            await stream.send(json.dumps(often(str(number), 1, credit=0)))
        await stream.send(json.dumps({"type": "credit", "id": "5", "n": 1}))
        assert [frame["final"] for frame in await until_last(stream, "5")] == [False, True]
        await stream.send(json.dumps(request(identity="new")))
        await stream.send(json.dumps(request(identity="newer")))  # waits, and what is behind it
        assert "outputs" in (await until_last(stream, "new"))[-1]
        assert "outputs" in (await until_last(stream, "newer"))[-1]
        await stream.send(json.dumps({"type": "cancel", "id": "6"}))
        assert (await until_last(stream, "6"))[-1]["code"] == "cancelled"
