"""Every limit of the data plane, at it and one past it: what fits is answered, what does not is refused in words.

Sizes and times that are too large for a test are set smaller; each is the same code as the real one.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from math import ceil

import grpc
import httpx
import pytest
import websockets
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as opened

from inference.gateway.grpc import wire
from inference.protocol.messages import Fault
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, VariantRoute
from tests.support import rawhttp
from tests.support.gateway_house import MLP, House, free_port, key, request, until
from tests.support.hurry import hurried

BODY_BYTES = 1 << 20
WIDE = Signature(
    inputs=[TensorSpec(f"x{number}", "FP32", [-1]) for number in range(64)],
    outputs=[TensorSpec("y", "FP32", [-1, -1])],
)
TALL = Signature(
    inputs=[TensorSpec("x", "FP32", [-1, 16])],
    outputs=[TensorSpec("y" if not number else f"y{number}", "FP32", [-1, 4]) for number in range(64)],
)
DEEP = Signature(inputs=[TensorSpec("x", "FP32", [-1] * 16)], outputs=[TensorSpec("y", "FP32", [-1, -1])])
HEAD = b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ser_all.s2\r\n"
KEY = ["serinus.v1", "serinus.key.ser_all.s2"]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    found = House()
    for name in ("r1", "slow", "held", "wide", "deep", "faulty"):
        found.replica(name)
    found.replicas["wide"].outputs = found.replicas["deep"].outputs = 1

    def endpoint(name, signature=MLP, timeout_ms=10_000, queue_limit=64):
        route = VariantRoute(1, "primary", 10_000, signature, [found.route(name)])
        return EndpointRoute(name, name, "s", False, timeout_ms, queue_limit, [route])

    others = [
        endpoint("slow", queue_limit=8),
        endpoint("held", timeout_ms=60_000, queue_limit=8),
        endpoint("wide", WIDE),
        endpoint("deep", DEEP),
        endpoint("faulty"),
    ]
    others.append(EndpointRoute("tall", "m", "s", False, 9000, 64, [VariantRoute(1, "primary", 10_000, TALL, [found.route("r1")])]))  # fmt: skip
    others.append(EndpointRoute("brief", "m", "s", False, 400, 64, [VariantRoute(1, "primary", 10_000, MLP, [found.route("slow")])]))  # fmt: skip
    found.publish(
        found.table(
            endpoints=others,
            queue_limit=200,
            timeout_ms=60_000,
            keys=[key("all", "s2", ["*"]), key("other", "s3", ["*"])],
        )
    )
    env = hurried(
        tmp_path_factory.mktemp("site"), http__HEAD_S=1.0, http__BODY_IDLE_S=1.0, http__IDLE_S=3.0, stream__IDLE_S=1.0,
        stream__MESSAGE_S=1.0, stream__STALL_S=3.0, stream__MAX_HELD_BYTES=4 * BODY_BYTES, asking__MAX_BEHIND_BYTES=8 * BODY_BYTES,
    )  # fmt: skip
    env |= {"SERINUS_MAX_BODY_BYTES": str(BODY_BYTES), "SERINUS_GRPC_PORT": str(free_port())}
    gateway = found.gateway(**env).wait_live()
    for name in ("mlp", "slow", "held", "wide", "deep", "faulty"):
        gateway.wait_ready(name)
    yield found
    assert "Traceback" not in gateway.log.read_text()
    found.close()


@pytest.fixture
def gateway(house):
    yield house.gateways[0]
    for replica in house.replicas.values():
        replica.latency_s, replica.fault = 0.0, None


def padded(size):
    data = json.dumps(request()).encode()
    return data + b" " * (size - len(data))


def many_inputs(count):
    names = [f"x{number}" for number in range(count)]
    return {"inputs": [{"name": name, "shape": [1], "datatype": "FP32", "data": [1.0]} for name in names]}


def nested(depth):
    values = "[" * depth + ",".join("1" * 16) + "]" * depth
    return ('{"inputs":[{"name":"x","shape":[1,16],"datatype":"FP32","data":' + values + "}]}").encode()


def shaped(shape, data=(1.0,)):
    return {"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": list(data)}]}


def rows(count):
    return shaped([count, 16], [0.5] * (16 * count))


def outputs(count):
    return request() | {"outputs": [{"name": "y" if not number else f"y{number}"} for number in range(count)]}


def parameters(count):
    return request() | {"parameters": {f"p{number}": 1 for number in range(count)}}


# what, endpoint, what fits, what does not, its status, its words
LIMITS = [
    ("body", "mlp", padded(BODY_BYTES), padded(BODY_BYTES + 1), 413, "larger than"),
    ("nested_data", "mlp", nested(16), nested(17), 400, "nested at most 16 deep"),
    ("inputs", "wide", many_inputs(64), many_inputs(65), 400, "length <= 64"),
    ("outputs", "tall", outputs(64), outputs(65), 400, "length <= 64"),
    ("parameters", "mlp", parameters(64), parameters(65), 400, "length <= 64"),
    ("rank", "deep", shaped([1] * 16), shaped([1] * 17), 400, "at most 16"),
    ("rows", "mlp", rows(64), rows(65), 400, "batch"),
    ("id", "mlp", request(identity="i" * 256), request(identity="i" * 257), 400, "longer than 256"),
]


@pytest.mark.parametrize(
    ("what", "endpoint", "fits", "past", "status", "words"), LIMITS, ids=[row[0] for row in LIMITS]
)
def test_at_the_limit_it_is_answered_and_past_it_refused(gateway, what, endpoint, fits, past, status, words):
    def post(body):
        form = {"content": body} if isinstance(body, bytes) else {"json": body}
        return gateway.post(f"/v2/models/{endpoint}/infer", **form)

    assert post(fits).status_code == 200, post(fits).text[:200]
    refused = post(past)
    assert refused.status_code == status, refused.text[:200]
    assert words in refused.json()["error"]
    assert refused.headers["x-error-code"]


def test_json_that_is_deeper_than_a_hundred_is_not_read_at_all(gateway):
    """Data are nested at most 16 deep, so what has a hundred levels is refused for that."""
    assert "at most 16 deep" in gateway.post(content=nested(100)).json()["error"]
    assert "deeper than 100" in gateway.post(content=nested(101)).json()["error"]
    beside = b'{"unknown":' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    refused = gateway.post(content=beside)
    assert (refused.status_code, refused.headers["x-error-code"]) == (400, "malformed")


@pytest.mark.parametrize(
    ("shape", "words"),
    [([2**63 - 1], "deep"), ([2**63], "invalid dimension"), ([2**31, 2**32 - 1], "deep"), ([2**31, 2**32], "63 bits")],
    ids=["dimension_fits", "dimension_past", "product_fits", "product_past"],
)
def test_elements_are_counted_in_63_bits_before_anything_is_made_for_them(gateway, shape, words):
    """No request can hold so many; what fits is refused for another reason: its data are too few."""
    refused = gateway.post("/v2/models/deep/infer", json=shaped(shape))
    assert refused.status_code == 400
    said = refused.json()["error"]
    if words == "deep":
        assert "63 bits" not in said
        assert "invalid dimension" not in said
    else:
        assert words in said


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_body_is_measured_when_it_is_inflated(gateway, encoding):
    import zlib

    pack = gzip.compress if encoding == "gzip" else zlib.compress
    headers = {"Content-Encoding": encoding}
    assert gateway.post(content=pack(padded(BODY_BYTES)), headers=headers).status_code == 200
    assert gateway.post(content=pack(padded(BODY_BYTES + 1)), headers=headers).status_code == 413


@pytest.mark.parametrize(("over", "status"), [(0, 200), (1, 413)], ids=["at", "past"])
def test_a_head_has_32_kib_at_most(gateway, over, status):
    body = json.dumps(request()).encode()
    start = HEAD + b"Content-Length: %d\r\nX-Pad: " % len(body)
    pad = b"a" * ((32 << 10) - len(start) - 4 + over)
    assert rawhttp.exchange(gateway.port, [start + pad + b"\r\n\r\n" + body]).status_code == status


@pytest.mark.parametrize(("count", "status"), [(65_536, 200), (65_537, 413)], ids=["at", "past"])
def test_a_body_has_65536_chunks_at_most(gateway, count, status):
    body = json.dumps(request()).encode()
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"1\r\n \r\n" * (count - len(body)) + b"0\r\n\r\n"
    answer = rawhttp.exchange(gateway.port, [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", pieces], timeout_s=20)
    assert answer.status_code == status, answer.text[:200]


def slowly(first, pause_s, rest):
    yield first
    time.sleep(pause_s)
    yield rest


@pytest.mark.parametrize(("pause_s", "status"), [(0.3, 200), (3.0, 400)], ids=["within", "past"])
def test_a_head_must_come_in_time(gateway, pause_s, status):
    body = json.dumps(request()).encode()
    parts = slowly(HEAD[:40], pause_s, HEAD[40:] + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert rawhttp.exchange(gateway.port, parts, timeout_s=10).status_code == status


@pytest.mark.parametrize(("pause_s", "status"), [(0.3, 200), (3.0, 503)], ids=["within", "past"])
def test_a_body_may_pause_only_so_long(gateway, pause_s, status):
    body = json.dumps(request()).encode()
    parts = slowly(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body[:40], pause_s, body[40:])
    answer = rawhttp.exchange(gateway.port, parts, timeout_s=10)
    assert answer.status_code == status
    if status == 503:
        assert answer.headers["x-error-code"] == "deadline_exceeded"


@pytest.mark.parametrize("is_kept", [True, False], ids=["within", "past"])
def test_a_connection_is_kept_between_requests_but_only_so_long(gateway, is_kept):
    body = json.dumps(request()).encode()
    asked = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection(("127.0.0.1", gateway.port)) as peer:
        peer.settimeout(20)
        for _ in range(3 if is_kept else 1):
            peer.sendall(asked)
            assert peer.recv(65536).startswith(b"HTTP/1.1 200")
        if not is_kept:
            assert peer.recv(65536) == b""


def started(gateway, house, pool, credential, count, name="slow"):
    """So many requests of one key under way at the replica that takes its time."""
    slow = house.replicas[name]
    before = len(slow.seen)
    found = [pool.submit(gateway.post, f"/v2/models/{name}/infer", credential) for _ in range(count)]
    until(lambda: len(slow.seen) == before + count)
    return found


def test_the_queue_of_an_endpoint_is_exact(gateway, house):
    house.replicas["slow"].latency_s = 2.0
    with ThreadPoolExecutor(8) as pool:
        # two keys, so that the share of one is not what binds
        waiting = started(gateway, house, pool, "ser_all.s2", 4) + started(gateway, house, pool, "ser_other.s3", 4)
        refused = gateway.post("/v2/models/slow/infer")
        assert refused.status_code == 503
        assert refused.headers["x-error-code"] == "overloaded"
        assert [one.result().status_code for one in waiting] == [200] * 8
    house.replicas["slow"].latency_s = 0.0
    assert gateway.post("/v2/models/slow/infer").status_code == 200


def test_a_full_queue_tells_at_all_doors_how_long_it_takes_and_not_all_the_same(gateway, house):
    """Nobody has left yet, so it takes as long again as it has stood, in whole seconds and up to a fourth more."""
    held = house.replicas["held"]
    held.holds = True
    call = wire.INFER_REQUEST(model_name="held")
    call.inputs.add(name="x", datatype="FP32", shape=[1, 16]).contents.fp32_contents.extend(range(16))
    address = f"ws://127.0.0.1:{gateway.port}/v2/models/held/stream"
    with (
        ThreadPoolExecutor(8) as pool,
        httpx.Client(base_url=gateway.url, headers={"authorization": "Bearer ser_all.s2"}, timeout=20) as rest,
        grpc.insecure_channel(gateway.grpc_address) as channel,
    ):
        began = time.monotonic()
        waiting = started(gateway, house, pool, "ser_all.s2", 4, "held")
        waiting += started(gateway, house, pool, "ser_other.s3", 4, "held")
        time.sleep(2.1)
        told = [rest.post("/v2/models/held/infer", json=request()).headers["retry-after"] for _ in range(30)]
        with opened(address, subprotocols=KEY) as stream:
            stream.send(json.dumps(request(identity="1")))
            by_websocket = json.loads(stream.recv(20))
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as by_grpc:
            infer(call.SerializeToString(), metadata=[("authorization", "Bearer ser_all.s2")], timeout=20)
        least, most = 3, ceil(time.monotonic() - began)
        held.holds = False
        house.loop.call_soon_threadsafe(held.let_go)
        assert [one.result().status_code for one in waiting] == [200] * 8
    assert by_websocket["code"] == "overloaded"
    assert len(set(told)) > 1
    told += [by_websocket["retry_after_s"], dict(by_grpc.value.trailing_metadata())["retry-after"]]
    assert all(least <= float(one) <= most + max(1, most // 4) for one in told), told


def test_a_key_has_its_share_of_the_queue_and_no_more(gateway, house):
    house.replicas["slow"].latency_s = 2.0
    with ThreadPoolExecutor(8) as pool:
        waiting = started(gateway, house, pool, "ser_other.s3", 1) + started(gateway, house, pool, "ser_all.s2", 4)
        assert gateway.post("/v2/models/slow/infer").status_code == 503  # an equal share of eight is four
        waiting += started(gateway, house, pool, "ser_other.s3", 1)
        assert [one.result().status_code for one in waiting] == [200] * 6


@pytest.mark.parametrize(("latency_s", "status"), [(0.1, 200), (1.5, 503)], ids=["within", "past"])
def test_an_endpoint_has_a_deadline_of_its_own(gateway, house, latency_s, status):
    house.replicas["slow"].latency_s = latency_s
    answer = gateway.post("/v2/models/brief/infer")
    assert answer.status_code == status
    if status == 503:
        assert answer.headers["x-error-code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    ("given", "status"), [("1", 503), ("0", 400), ("86400000", 200), ("86400001", 400)], ids=["1", "0", "most", "past"]
)
def test_a_deadline_that_a_client_names_is_bounded(gateway, house, given, status):
    if status == 503:
        house.replicas["r1"].latency_s = 0.3
    assert gateway.post(headers={"X-Request-Timeout-Ms": given}).status_code == status


def test_retries_are_32_at_once_and_then_one_in_ten(gateway, house):
    faulty = house.replicas["faulty"]
    faulty.fault = Fault(0, "draining", "")
    with httpx.Client(headers={"Authorization": "Bearer ser_all.s2"}) as client:
        url = f"{gateway.url}/v2/models/faulty/infer"
        for count in range(1, 36):
            assert client.post(url, json=request()).status_code == 503
            assert len(faulty.seen) == 2 * count
        client.post(url, json=request())
        assert len(faulty.seen) == 71
        for _ in range(20):
            client.post(url, json=request())
    assert len(faulty.seen) in {92, 93, 94}


# -- WebSocket --------------------------------------------------------------------------------------------------------


@pytest.fixture
def connect(gateway):
    def make(subprotocols=KEY, **more):
        url = f"ws://127.0.0.1:{gateway.port}/v2/models/mlp/stream"
        return websockets.connect(
            url, subprotocols=subprotocols, max_size=None, compression=None, ping_interval=None, **more
        )

    return make


def text_of(size):
    text = json.dumps(request(identity="t"))
    return text + " " * (size - len(text))


def id_of(answer):
    return json.loads(answer[4 : 4 + int.from_bytes(answer[:4], "little")])["id"]


def binary_of(size, identity="t"):
    head = json.dumps(request(identity=identity) | {"pad": ""}).encode()
    head = head[:-2] + b"a" * (size - 4 - len(head)) + head[-2:]
    return len(head).to_bytes(4, "little") + head


@pytest.mark.parametrize(("form", "most"), [(text_of, 1 << 20), (binary_of, BODY_BYTES)], ids=["text", "binary"])
async def test_a_frame_has_a_size_at_most(connect, form, most):
    async with connect() as stream:
        await stream.send(form(most))
        answer = await asyncio.wait_for(stream.recv(), 10)
        assert b"outputs" in (answer.encode() if isinstance(answer, str) else answer)
        await stream.send(form(most + 1))
        with pytest.raises(ConnectionClosed) as caught:
            await asyncio.wait_for(stream.recv(), 10)
        assert caught.value.rcvd.code == 1009


async def test_64_requests_may_be_in_flight_on_a_connection_and_the_next_one_waits(connect, house):
    replica = house.replicas["r1"]
    replica.latency_s, before = 2.0, len(replica.seen)
    async with connect() as stream:
        for number in range(65):
            await stream.send(json.dumps(request(identity=str(number))))
        await asyncio.to_thread(until, lambda: len(replica.seen) == before + 64)
        await asyncio.sleep(0.5)
        assert len(replica.seen) == before + 64
        replica.latency_s = 0.0
        found = {json.loads(await asyncio.wait_for(stream.recv(), 10))["id"] for _ in range(65)}
    assert found == {str(number) for number in range(65)}


async def test_large_frames_under_way_on_a_connection_have_a_size_and_the_next_one_waits(connect, house):
    replica = house.replicas["r1"]
    replica.holds = True
    async with connect() as stream:
        for number in range(4):
            await stream.send(binary_of(BODY_BYTES, str(number)))
        await stream.send('{"type":"ping"}')
        assert await asyncio.wait_for(stream.recv(), 10) == '{"type":"pong"}'
        await stream.send(binary_of(BODY_BYTES, "more"))
        async with connect() as other:  # by which the gateway has read what it reads
            for _ in range(20):
                await other.send('{"type":"ping"}')
                await asyncio.wait_for(other.recv(), 10)
        assert len(replica.held) == 4
        house.loop.call_soon_threadsafe(replica.let_go)
        found = {id_of(await asyncio.wait_for(stream.recv(), 10)) for _ in range(5)}
    assert found == {"0", "1", "2", "3", "more"}


async def test_large_frames_of_all_connections_have_a_size_and_past_it_the_client_shall_try_again(connect, house):
    replica = house.replicas["r1"]
    replica.holds = True
    async with connect() as one, connect() as other, connect() as third:
        for number in range(8):
            await (one, other)[number % 2].send(binary_of(BODY_BYTES, str(number)))
        await asyncio.to_thread(until, lambda: len(replica.held) == 8)
        await third.send(binary_of(BODY_BYTES, "past"))
        with pytest.raises(ConnectionClosed) as caught:
            await asyncio.wait_for(third.recv(), 10)
        assert caught.value.rcvd.code == 1013
        house.loop.call_soon_threadsafe(replica.let_go)
        for stream in (one, other):
            assert len({id_of(await asyncio.wait_for(stream.recv(), 10)) for _ in range(4)}) == 4
        await one.send(binary_of(BODY_BYTES, "again"))
        assert id_of(await asyncio.wait_for(one.recv(), 10)) == "again"


async def test_answers_that_wait_for_a_client_have_a_size_and_the_next_one_is_dropped(connect):
    part = {"parts": 1, "part_bytes": BODY_BYTES}
    async with connect() as stream:
        for number in range(9):
            await stream.send(json.dumps(request(identity=str(number)) | {"credit": 0, "parameters": part}))
        last = json.loads(await asyncio.wait_for(stream.recv(), 30))
        assert (last["code"], "read them" in last["error"]) == ("overloaded", True)
        kept = next(str(number) for number in range(9) if str(number) != last["id"])
        await stream.send(json.dumps({"type": "credit", "id": kept, "n": 1}))
        answer = json.loads(await asyncio.wait_for(stream.recv(), 30))
        assert (answer["id"], len(answer["outputs"][0]["data"])) == (kept, BODY_BYTES // 4)


async def test_an_idle_connection_is_closed_and_one_at_work_is_not(connect, house):
    replica = house.replicas["r1"]
    replica.latency_s = 3.5
    async with connect() as stream:
        await stream.send(json.dumps(request(identity="1")))
        assert "outputs" in json.loads(await asyncio.wait_for(stream.recv(), 10))
        with pytest.raises(ConnectionClosed) as caught:
            await asyncio.wait_for(stream.recv(), 10)
        assert caught.value.rcvd.code == 1000


@pytest.mark.parametrize(("pause_s", "fits"), [(0.3, True), (3.0, False)], ids=["within", "past"])
async def test_a_message_must_come_in_time(connect, pause_s, fits):
    text = json.dumps(request(identity="m"))

    async def slowly_sent():
        yield text[:40]
        await asyncio.sleep(pause_s)
        yield text[40:]

    async with connect() as stream:
        if fits:
            await stream.send(slowly_sent())
            assert "outputs" in json.loads(await asyncio.wait_for(stream.recv(), 10))
            return
        sending = asyncio.create_task(stream.send(slowly_sent()))
        with pytest.raises(ConnectionClosed) as caught:
            await asyncio.wait_for(stream.recv(), 10)
        assert caught.value.rcvd.code == 1008
        assert "in time" in caught.value.rcvd.reason
        await asyncio.gather(sending, return_exceptions=True)


@pytest.mark.parametrize(("pause_s", "parts", "is_cut"), [(0.3, 64, False), (4.0, 5_000, True)], ids=["within", "past"])
async def test_a_reader_that_takes_nothing_is_cut(connect, house, pause_s, parts, is_cut):
    replica = house.replicas["r1"]
    replica.latency_s, before = 0.02, len(replica.seen)  # the replica can be told to pause, well before too much waits
    asked = request(identity="p") | {"parameters": {"parts": parts, "part_bytes": 256 << 10}}
    async with connect(max_queue=1) as stream:
        stream.transport.pause_reading()
        await stream.send(json.dumps(asked))
        await asyncio.to_thread(until, lambda: len(replica.seen) > before)
        mine = replica.seen[-1].id
        await asyncio.sleep(0.5)
        assert mine not in replica.cancelled
        if is_cut:
            await asyncio.to_thread(until, lambda: mine in replica.cancelled, 15)
        stream.transport.resume_reading()
        found = 0
        try:
            while not (frame := json.loads(await asyncio.wait_for(stream.recv(), 30))).get("final"):
                found += frame.get("type") == "response"  # not the server's pings
        except ConnectionClosed as closed:
            found = -1 if closed.rcvd is None else found
        assert found == (-1 if is_cut else parts)
