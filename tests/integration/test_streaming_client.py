"""The Python client of the WebSocket, against a real gateway process."""

import asyncio
import struct
import subprocess
import sys
from array import array
from contextlib import aclosing

import numpy as np
import pytest
import websockets

from inference.errors import (
    DeadlineExceeded,
    Forbidden,
    InvalidInput,
    Malformed,
    NotFound,
    NotReady,
    SequenceLost,
    SerinusError,
)
from inference.protocol.messages import Fault, SequenceControl
from inference.protocol.routes import EndpointRoute, VariantRoute
from inference.streaming import Stream, SyncStream
from inference.streaming.answers import Tensor, request
from tests.support.gateway_house import TEXT, House, until

ROW = np.arange(16, dtype=np.float32).reshape(1, 16)
KEY = "ser_all.s2"


@pytest.fixture(scope="module")
def house():
    found = House()
    found.replica()
    found.replica("text")
    text = [VariantRoute(1, "primary", 10_000, TEXT, [found.route("text")])]
    found.publish(found.table(endpoints=[EndpointRoute("text", "t", "s", False, 5000, 100, text)]))
    found.gateway().wait_live().wait_ready().wait_ready("text")
    yield found
    found.close()


@pytest.fixture
def url(house):
    yield house.gateways[0].url
    house.replicas["r1"].latency_s, house.replicas["r1"].fault = 0.0, None


async def test_arrays_and_plain_values_go_in_and_come_out(url):
    async with Stream(url, KEY) as stream:
        answer = await stream.infer("mlp", {"x": ROW})
        assert (answer.model, answer.version, answer.arm, answer.is_last) == ("mlp", "1", "primary", True)
        assert answer["y"].values == [0.0, 2.0, 4.0, 6.0]
        assert (answer["y"].numpy() == np.array([[0, 2, 4, 6]], np.float32)).all()
        plain = await stream.infer("mlp", {"x": ("FP32", [1, 16], list(range(16)))}, outputs=["y"])
        raw = await stream.infer("mlp", {"x": ("FP32", (1, 16), ROW.tobytes())}, version=1, session="me")
        assert plain["y"].data == raw["y"].data == answer["y"].data
        words = await stream.infer("text", {"text": np.array([["grüße"]], dtype=object)})
        assert words["y"].values == ["grüße".encode()]
        with pytest.raises(KeyError):
            answer["z"]


async def test_many_requests_share_the_connection(url, house):
    replica = house.replicas["r1"]
    replica.holds = True
    async with Stream(url, KEY) as stream:
        asked = asyncio.gather(*(stream.infer("mlp", {"x": ROW + n}) for n in range(50)))
        await asyncio.to_thread(until, lambda: len(replica.held) == 50)
        house.loop.call_soon_threadsafe(replica.let_go)
        assert [answer["y"].values[0] for answer in await asked] == [2.0 * n for n in range(50)]


async def test_a_stream_is_iterated_over_and_leaving_it_cancels(url, house):
    async with Stream(url, KEY) as stream:
        seen = [a["y"].values[0] async for a in stream.stream("mlp", {"x": ROW}, parameters={"parts": 30}, credit=3)]
        assert seen == [float(n) for n in range(30)]
        house.replicas["r1"].latency_s = 0.01
        before = len(house.replicas["r1"].cancelled)
        async with aclosing(stream.stream("mlp", {"x": ROW}, parameters={"parts": 1000})) as answers:
            async for _ in answers:
                break
        await asyncio.to_thread(until, lambda: len(house.replicas["r1"].cancelled) > before, 2)
        with pytest.raises(InvalidInput, match="stream"):
            await stream.infer("mlp", {"x": ROW}, parameters={"parts": 2})


async def test_a_caller_who_is_cancelled_cancels_the_request(url, house):
    house.replicas["r1"].latency_s = 2.0
    before = len(house.replicas["r1"].cancelled)
    async with Stream(url, KEY) as stream:
        task = asyncio.ensure_future(stream.infer("mlp", {"x": ROW}))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(until, lambda: len(house.replicas["r1"].cancelled) > before, 1)


async def test_a_sequence_begins_and_ends(url, house):
    async with Stream(url, KEY) as stream:
        async with stream.sequence("mlp", 9) as sequence:
            for _ in range(2):
                await sequence.infer({"x": ROW})
        async with stream.sequence("mlp", "named") as sequence:
            await sequence.infer({"x": ROW}, end=True)
            with pytest.raises(InvalidInput):
                await sequence.infer({"x": ROW})
    told = [(m.sequence.id, m.sequence.start, m.sequence.end) for m in house.replicas["r1"].seen[-4:]]
    assert told == [(9, True, False), (9, False, False), (9, False, True), ("named", True, True)]


async def test_errors_are_typed(url, house):
    async with Stream(url, KEY) as stream:
        with pytest.raises(NotFound):
            await stream.infer("nope", {"x": ROW})
        with pytest.raises(InvalidInput, match="shape"):
            await stream.infer("mlp", {"x": ROW[:, :3]})
        with pytest.raises(InvalidInput, match="neither"):
            await stream.infer("mlp", {"x": 3})
        house.replicas["r1"].latency_s = 1.0
        with pytest.raises(DeadlineExceeded):
            await stream.infer("mlp", {"x": ROW}, timeout_s=0.1)
    with pytest.raises(NotReady):
        await stream.infer("mlp", {"x": ROW})
    with pytest.raises(Forbidden):
        await Stream(url, "ser_all.wrong").open()
    with pytest.raises(NotReady):
        await Stream("ws://127.0.0.1:1").open()


async def test_outputs_may_be_asked_for_as_json(url):
    async with Stream(url, KEY) as stream:
        answer = await stream.infer("mlp", {"x": ROW}, parameters={"binary_data_output": False})
        assert answer["y"].values == [0.0, 2.0, 4.0, 6.0]


async def test_a_sequence_that_did_not_begin_begins_with_the_next_request(url, house):
    replica = house.replicas["r1"]
    async with Stream(url, KEY) as stream, stream.sequence("mlp", 11) as sequence:
        for fault, is_start in (
            ("overloaded", True),
            ("sequence_lost", True),
            ("", True),
            ("invalid_output", False),
            ("", False),
        ):
            replica.fault = Fault(0, fault, "") if fault else None
            if fault:
                with pytest.raises(SerinusError):
                    await sequence.infer({"x": ROW})
            else:
                await sequence.infer({"x": ROW})
            assert replica.seen[-1].sequence == SequenceControl(11, start=is_start)
        replica.fault = Fault(0, "sequence_lost", "")
        with pytest.raises(SequenceLost):
            await sequence.infer({"x": ROW}, end=True)
        replica.fault = None
        await sequence.infer({"x": ROW}, end=True)
        assert replica.seen[-1].sequence == SequenceControl(11, start=True, end=True)


async def silent_server(reads):
    """A server that shakes hands and then reads nothing, or reads and says nothing."""

    async def talk(socket):
        if not reads:
            socket.transport.pause_reading()
        await socket.wait_closed()

    return await websockets.serve(
        talk, "127.0.0.1", 0, subprotocols=["serinus.v1"], close_timeout=0.1, ping_interval=None, max_size=None
    )


@pytest.mark.parametrize("reads", [True, False])
async def test_every_wait_ends_by_its_deadline(monkeypatch, reads):
    monkeypatch.setattr("inference.streaming.stream.SLACK_S", 0.1)
    server = await silent_server(reads)
    try:
        stream = Stream(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", KEY, timeout_s=0.2)
        await stream.open()
        large = ("FP32", [1, 4 << 20], bytes(16 << 20))  # more than sockets hold
        with pytest.raises(DeadlineExceeded):
            await stream.infer("mlp", {"x": large})
        with pytest.raises(DeadlineExceeded):
            async for _ in stream.stream("mlp", {"x": large}):
                pass
        with pytest.raises(DeadlineExceeded):
            await stream.ask("ready")
        stream._socket.transport.abort()
        await stream.close()
        with pytest.raises(NotReady):
            await stream.ask("ready")
    finally:
        server.close()


@pytest.mark.parametrize(
    "said",
    ["[]", "{", b"\xff", '{"id":"1","outputs":[{"name":"y"}],"model_name":"m","model_version":"1"}', '{"id":"1"}'],
)
async def test_a_server_that_makes_no_sense_is_a_typed_error(said):
    async def talk(socket):
        await socket.recv()
        await socket.send(said)
        await socket.wait_closed()

    async with websockets.serve(talk, "127.0.0.1", 0, subprotocols=["serinus.v1"]) as server:
        url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Stream(url, KEY) as stream:
            with pytest.raises(Malformed):
                await stream.infer("mlp", {"x": ROW})


async def test_questions_need_no_http(url):
    async with Stream(url, KEY) as stream:
        assert (await stream.ask("metadata", "mlp"))["name"] == "mlp"
        assert await stream.ask("ready") is True
        assert await stream.ask("ready", "mlp", version=7) is False
        assert (await stream.generate("text", {"text": "hi"}))["y"] == "hi"


def test_without_asyncio(url):
    with SyncStream(url, KEY) as stream:
        assert stream.infer("mlp", {"x": ROW})["y"].values == [0.0, 2.0, 4.0, 6.0]
        assert len(list(stream.stream("mlp", {"x": ROW}, parameters={"parts": 4}))) == 4
        for _ in stream.stream("mlp", {"x": ROW}, parameters={"parts": 1000}):
            break
        assert stream.generate("text", {"text": "hi"})["y"] == "hi"
        assert stream.ask("ready", "mlp") is True
    with pytest.raises(Forbidden), SyncStream(url, "wrong"):
        pass
    for closed in (stream, SyncStream(url, KEY)):
        with pytest.raises(NotReady):
            closed.infer("mlp", {"x": ROW})


def test_it_imports_without_numpy():
    code = "import sys; import inference.streaming; assert 'numpy' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("datatype", ["BOOL", "INT8", "UINT16", "INT32", "UINT64", "FP16", "FP32", "FP64", "BYTES"])
def test_values_survive_the_frame(datatype):
    values = [b"a", b""] if datatype == "BYTES" else [True, False] if datatype == "BOOL" else [1, 2]
    frame = request({"id": "1"}, {"x": (datatype, [2], values)})
    size = struct.unpack_from("<I", frame)[0]
    assert Tensor("x", datatype, [2], memoryview(frame)[4 + size :]).values == values


@pytest.mark.parametrize("given", [("FP32", [1], ["a"]), ("INT8", [1], [300]), ("BF16", [1], [1.0]), array("f", [1])])
def test_what_is_no_tensor_is_refused_before_it_is_sent(given):
    with pytest.raises(InvalidInput):
        request({}, {"x": given})
