"""The WebSocket door, as docs/websocket.md specifies it, on a real gateway process."""

import asyncio
import json
import socket
import struct
from pathlib import Path

import pytest
import websockets
from websockets.exceptions import ConnectionClosed, InvalidStatus

from inference.protocol.routes import EndpointRoute, VariantRoute
from tests.support.gateway_house import BIG, MLP, House, key, request, token, until
from tests.support.streams import unchanged_while_others_talk

KEY = ["serinus.v1", "serinus.key.ser_all.s2"]


async def until_refused(stream, body):
    while "error" not in (answer := await ask(stream, body)):
        pass
    return answer


@pytest.fixture(scope="module")
def house():
    found = House()
    found.replica()
    found.replica("r2", version=2)
    found.replica("big")
    big = VariantRoute(1, "primary", 10_000, BIG, [found.route("big")])
    found.others = [EndpointRoute("big", "big", "s", True, 5000, 1000, [big])]
    found.variants = [
        VariantRoute(1, "primary", 5000, MLP, [found.route()]),
        VariantRoute(2, "canary", 5000, MLP, [found.route("r2")]),
    ]
    found.publish(found.table(found.variants, endpoints=found.others, queue_limit=200))
    found.gateway(SERINUS_GATEWAY_DRAIN_S="10").wait_live().wait_ready().wait_ready("big")
    yield found
    found.close()


@pytest.fixture
def replica(house):
    yield house.replicas["r1"]
    for one in house.replicas.values():
        one.latency_s = 0.0
        one.fault = None


@pytest.fixture
def connect(house):
    def make(name="mlp/versions/1", subprotocols=KEY, **more):
        url = f"ws://127.0.0.1:{house.gateways[0].port}/v2/models/{name}/stream"
        return websockets.connect(url, subprotocols=subprotocols, max_size=None, compression=None, **more)

    return make


async def ask(socket, body):
    await socket.send(json.dumps(body))
    return json.loads(await asyncio.wait_for(socket.recv(), 10))


def frame(body, rest=b""):
    head = json.dumps(body).encode()
    return struct.pack("<I", len(head)) + head + rest


def unframe(data):
    size = struct.unpack_from("<I", data)[0]
    return json.loads(data[4 : 4 + size]), data[4 + size :]


async def test_a_text_frame_is_answered_by_a_text_frame(connect):
    async with connect() as stream:
        assert stream.subprotocol == "serinus.v1"
        answer = await ask(stream, request(identity="a"))
        assert answer["id"] == "a"
        assert answer["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [0.0, 2.0, 4.0, 6.0]}]
        assert (answer["model_version"], answer["parameters"]) == ("1", {"rollout_arm": "primary"})


async def test_times_and_trace_context_come_back_when_asked_for(connect):
    context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    async with connect() as stream:
        answer = await ask(stream, request(identity="a") | {"traceparent": context, "parameters": {"timeline": True}})
    told = answer["parameters"]
    assert told["traceparent"] == context
    assert {name for name in told if name.startswith("timeline_")} == {
        f"timeline_{part}_us" for part in ("gateway", "network", "queue", "input", "compute", "output")
    }
    assert told["timeline_queue_us"] == 1


async def test_a_binary_frame_is_answered_by_a_binary_frame(connect):
    tensor = {"name": "x", "shape": [1, 16], "datatype": "FP32", "parameters": {"binary_data_size": 64}}
    async with connect() as stream:
        await stream.send(frame({"id": "b", "inputs": [tensor]}, struct.pack("<16f", *range(16))))
        body, rest = unframe(await stream.recv())
        assert body["id"] == "b"
        assert body["outputs"][0]["parameters"] == {"binary_data_size": 16}
        assert struct.unpack("<4f", rest) == (0, 2, 4, 6)
        await stream.send(
            frame({"id": "c", "inputs": [tensor], "parameters": {"binary_data_output": False}}, bytes(64))
        )
        body, rest = unframe(await stream.recv())
        assert (body["outputs"][0]["data"], rest) == ([0.0] * 4, b"")
        await stream.send(frame({"id": "d", "inputs": [tensor]}, bytes(63)))
        body, rest = unframe(await stream.recv())
        assert (body["id"], body["code"], rest) == ("d", "malformed", b"")


async def test_many_are_in_flight_and_come_back_as_they_are_ready(connect, house, replica):
    replica.holds = True
    async with connect() as stream:
        for number in range(40):
            await stream.send(json.dumps(request(identity=str(number))))
        await asyncio.to_thread(until, lambda: len(replica.held) == 40)
        house.loop.call_soon_threadsafe(replica.let_go)
        seen = {json.loads(await stream.recv())["id"] for _ in range(40)}
        assert seen == {str(number) for number in range(40)}


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ("{", "malformed"), ("[]", "malformed"), ("\x00", "malformed"), ('{"id":1}', "malformed"), ("[" * 5000, "malformed"),
        (json.dumps(request()), "invalid_input"), ('{"id":"x"}', "invalid_input"),
        ('{"type":"talk","id":"x"}', "unsupported"), ('{"type":"chat","id":"x"}', "invalid_input"), ('{"type":"generate"}', "invalid_input"),
        ('{"type":"stats"}', "invalid_input"), ('{"id":"x","credit":-1}', "malformed"),
        ('{"id":"x","version":"one"}', "invalid_input"), ('{"id":"x","model":"big"}', "invalid_input"),
        (json.dumps({"id": "x" * 257} | request()), "invalid_input"),
        (json.dumps(request(identity="s") | {"parameters": {"sequence_start": True}}), "invalid_input"),
        (b"", "malformed"), (b"\xff\xff\xff\xff{}", "malformed"), (b"\2\0\0\0{}", "invalid_input"),
        (json.dumps(request(identity="o") | {"parameters": {"binary_data_output": True}}), "invalid_input"),
    ],
)  # fmt: skip
async def test_a_bad_frame_is_a_typed_error_and_the_connection_goes_on(connect, sent, code):
    async with connect() as stream:
        await stream.send(sent)
        answer = await asyncio.wait_for(stream.recv(), 5)
        body = unframe(answer)[0] if isinstance(sent, bytes) else json.loads(answer)
        assert body.keys() >= {"id", "error", "code"}
        assert body["code"] == code
        assert (await ask(stream, request(identity="next")))["id"] == "next"


async def test_an_id_under_way_is_a_conflict(connect, replica):
    replica.latency_s = 0.3
    async with connect() as stream:
        await stream.send(json.dumps(request(identity="same")))
        answer = await ask(stream, request(identity="same"))
        assert (answer["id"], answer["code"]) == ("same", "conflict")
        assert "outputs" in json.loads(await stream.recv())


async def test_cancel_frees_the_request(connect, replica):
    replica.latency_s = 2.0
    async with connect() as stream:
        await stream.send(json.dumps(request(identity="gone")))
        await asyncio.sleep(0.1)
        answer = await ask(stream, {"type": "cancel", "id": "gone"})
        assert (answer["id"], answer["code"]) == ("gone", "cancelled")
        number = replica.seen[-1].id
        await asyncio.to_thread(until, lambda: number in replica.cancelled, 1)
        await stream.send(json.dumps({"type": "cancel", "id": "never"}))
        replica.latency_s = 0.0
        assert (await ask(stream, request(identity="gone")))["id"] == "gone"


async def test_a_deadline_is_kept(connect, replica):
    replica.latency_s = 2.0
    async with connect() as stream:
        answer = await ask(stream, request(identity="late") | {"parameters": {"timeout": 50_000}})
        assert answer["code"] == "deadline_exceeded"


async def test_who_leaves_is_cancelled(connect, replica):
    replica.latency_s = 3.0
    before = len(replica.cancelled)
    async with connect() as stream:
        for number in range(5):
            await stream.send(json.dumps(request(identity=str(number))))
        await asyncio.sleep(0.2)
    await asyncio.to_thread(until, lambda: len(replica.cancelled) >= before + 5, 1)


@pytest.mark.parametrize(
    ("name", "subprotocols", "headers"),
    [
        ("mlp", None, {}),
        ("mlp", ["serinus.v1"], {"Cookie": "sessionid=abc"}),
        ("mlp", ["serinus.v1", "serinus.key.ser_all.wrong"], {}),
        ("mlp?key=ser_all.s2", None, {}),
        ("nope", KEY, {}),
        ("big", ["serinus.key.ser_one.wrong"], {}),
        ("mlp/versions/9", KEY, {}),
    ],
)
async def test_a_handshake_without_right_is_refused(connect, name, subprotocols, headers):
    with pytest.raises(InvalidStatus) as caught:
        async with connect(name, subprotocols, additional_headers=headers):
            pass
    assert caught.value.response.status_code == 403


async def test_the_key_may_come_as_a_header_and_a_public_endpoint_needs_none(connect):
    async with connect(subprotocols=None, additional_headers={"Authorization": "Bearer ser_all.s2"}) as stream:
        assert stream.subprotocol is None
        assert "outputs" in await ask(stream, request(identity="h"))
    async with connect("big", None) as stream:
        tensor = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]}
        assert "outputs" in await ask(stream, {"id": "1", "inputs": [tensor]})


async def test_a_token_opens_its_own_endpoint_alone(connect):
    given = token("someone", "mlp", "playground")
    async with connect("mlp", ["serinus.v1", f"serinus.key.{given}"]) as stream:
        assert "outputs" in await ask(stream, request(identity="t"))
    for name in ("nope", "mlp"):
        bad = given if name == "nope" else given[:-1]
        with pytest.raises(InvalidStatus):
            async with connect(name, ["serinus.v1", f"serinus.key.{bad}"]):
                pass


async def test_sessions_spread_over_the_variants(connect):
    async with connect("mlp") as stream:
        found = [(await ask(stream, request(identity="1") | {"session": f"s{n}"}))["model_version"] for n in range(60)]
        assert {"1", "2"} == set(found)
        again = [(await ask(stream, request(identity="1") | {"session": f"s{n}"}))["model_version"] for n in range(60)]
        assert again == found
        assert len({(await ask(stream, request(identity="1")))["model_version"] for _ in range(10)}) == 1


async def test_a_text_frame_over_a_mebibyte_closes_the_connection(connect):
    async with connect() as stream:
        padded = json.dumps(request(identity="p"))
        answer = await ask(stream, json.loads(padded) | {"pad": "x" * ((1 << 20) - len(padded) - 12)})
        assert answer["id"] == "p"
        with pytest.raises(ConnectionClosed) as caught:
            await ask(stream, request(identity="q") | {"pad": "x" * (1 << 20)})
        assert caught.value.rcvd.code == 1009


async def test_a_large_binary_frame_passes(connect):
    tensor = {"name": "x", "shape": [3 << 20], "datatype": "FP32", "parameters": {"binary_data_size": 12 << 20}}
    async with connect("big", None) as stream:
        await stream.send(frame({"id": "L", "inputs": [tensor]}, bytes(12 << 20)))
        body, _ = unframe(await asyncio.wait_for(stream.recv(), 20))
        assert body["id"] == "L"


async def test_a_slow_reader_pauses_only_itself(connect, house, replica):
    big = house.replicas["big"]
    before = len(big.seen)
    tensor = {"name": "x", "shape": [1 << 16], "datatype": "FP32", "parameters": {"binary_data_size": 1 << 18}}
    big.echoes = True  # as much comes back

    def rss():
        with Path(f"/proc/{house.gateways[0].process.pid}/statm").open() as file:
            return int(file.read().split()[1]) * 4096

    async with connect("big", None, max_queue=1) as slow, connect() as quick:
        sent = 0

        async def flood():
            nonlocal sent
            for number in range(1000):
                await slow.send(frame({"id": str(number), "inputs": [tensor]}, bytes(1 << 18)))
                sent += 1

        slow.transport.pause_reading()
        task = asyncio.create_task(flood())
        await unchanged_while_others_talk(lambda: len(big.seen), quick)
        assert len(big.seen) - before < 250
        assert sent < 1000
        assert rss() < 400 << 20
        task.cancel()
        slow.transport.abort()
    big.echoes = False


async def test_a_revoked_key_ends_the_connection(connect, house):
    async with connect() as stream:
        assert "outputs" in await ask(stream, request(identity="1"))
        house.publish(house.table(house.variants, endpoints=house.others, keys=[key("one", "s1", ["mlp"])]))
        answer = await asyncio.wait_for(until_refused(stream, request(identity="2")), 20)
        house.publish(house.table(house.variants, endpoints=house.others, queue_limit=200))
        assert answer["code"] == "unauthenticated"
        with pytest.raises(ConnectionClosed) as caught:
            await asyncio.wait_for(stream.recv(), 5)
        assert caught.value.rcvd.code == 1008
    house.gateways[0].wait_ready()


def test_the_stream_address_says_so_to_plain_http(house):
    response = house.gateways[0].get("/v2/models/mlp/stream")
    assert (response.status_code, response.json()) == (400, {"error": "This address speaks WebSocket"})


async def test_a_drain_tells_and_finishes(house):
    gateway = house.gateway(SERINUS_GATEWAY_DRAIN_S="20").wait_live().wait_ready()
    url = f"ws://127.0.0.1:{gateway.port}/v2/models/mlp/versions/1/stream"
    replica = house.replicas["r1"]
    replica.holds = True
    async with websockets.connect(url, subprotocols=KEY) as stream:
        await stream.send(json.dumps(request(identity="last")))
        assert await ask(stream, {"type": "ping"}) == {"type": "pong"}  # so that one was read, whoever else is held
        await asyncio.to_thread(until, lambda: len(replica.held) >= 1)
        gateway.process.terminate()
        assert json.loads(await stream.recv()) == {"type": "draining"}
        assert (await ask(stream, request(identity="new")))["code"] == "draining"
        house.loop.call_soon_threadsafe(replica.let_go)
        assert json.loads(await stream.recv())["id"] == "last"
        with pytest.raises(ConnectionClosed) as caught:
            await asyncio.wait_for(stream.recv(), 15)
        assert caught.value.rcvd.code == 1012
    assert await asyncio.to_thread(gateway.stop) == 0


async def test_a_thousand_idle_connections_are_cheap(connect, house):
    pid = house.gateways[0].process.pid

    def rss():
        with Path(f"/proc/{pid}/statm").open() as file:
            return int(file.read().split()[1]) * 4096

    before = rss()
    streams = []
    for _ in range(20):
        streams += await asyncio.gather(*(connect("big", None, ping_interval=None) for _ in range(50)))
    assert (rss() - before) / 1000 < 30 << 10
    assert "outputs" in await ask(
        streams[-1], {"id": "1", "inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}
    )
    await asyncio.gather(*(stream.close() for stream in streams))


def test_a_broken_handshake_is_harmless(house):
    with socket.create_connection(("127.0.0.1", house.gateways[0].port), 5) as peer:
        peer.sendall(
            b"GET /v2/models/mlp/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        )
        assert peer.recv(4096).startswith(b"HTTP/1.1 4")
