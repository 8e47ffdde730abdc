"""What the REST door bounds: compressed and large bodies, heads, queues, time, and what a refusal says."""

import contextlib
import gzip
import select
import socket
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import msgspec
import pytest

from inference.protocol.messages import Fault
from tests.support.gateway_house import request, until
from tests.support.rest_house import error, rest_house


@pytest.fixture(scope="module")
def house():
    with rest_house() as found:
        yield found


@pytest.fixture
def gateway(house):
    yield house.gateways[0]
    for replica in house.replicas.values():
        replica.fault = None


def packed(data, encoding):
    return gzip.compress(data, mtime=0) if encoding == "gzip" else zlib.compress(data)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bodies_are_inflated_within_the_limit(gateway, encoding):
    body = msgspec.json.encode(request())
    response = gateway.post(content=packed(body, encoding), headers={"Content-Encoding": encoding})
    assert response.json()["outputs"][0]["data"] == [0.0, 2.0, 4.0, 6.0]
    for broken in (b"x", packed(body, encoding)[:-3], packed(body, encoding) + b"x"):
        error(gateway.post(content=broken, headers={"Content-Encoding": encoding}), 400, encoding)
    limit = packed(b" " * (1 << 20), encoding)
    error(gateway.post(content=limit, headers={"Content-Encoding": encoding}), 400, "failed to parse")
    bomb = packed(bytes(200 << 20), encoding)
    assert len(bomb) < 1 << 20
    for path in ("/v2/models/mlp/infer", "/v2/models/mlp/generate", "/v2/logging"):
        error(gateway.post(path, content=bomb, headers={"Content-Encoding": encoding}), 413)


def test_an_unknown_encoding_is_refused(gateway):
    error(gateway.post(content=b"x", headers={"Content-Encoding": "br"}), 415)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_long_answers_are_compressed_for_who_accepts_it(gateway, encoding):
    rows = [float(i) for i in range(64 * 16)]
    response = gateway.post(json=request(rows), headers={"Accept-Encoding": encoding})
    assert response.headers["content-encoding"] == encoding
    assert len(response.json()["outputs"][0]["data"]) == 256
    plain = gateway.post(json=request(rows), headers={"Accept-Encoding": f"{encoding};q=0"})
    assert "content-encoding" not in plain.headers
    assert plain.json() == response.json()


def raw(gateway, data, within_s=5.0):
    """What the gateway answers to these bytes until it closes or falls silent."""
    with socket.create_connection(("127.0.0.1", gateway.port)) as peer:
        peer.settimeout(within_s)
        found = b""
        try:
            for part in data:
                peer.sendall(part)
            while part := peer.recv(65536):
                found += part
        except OSError:
            pass
        return found


HEAD = b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ser_all.s2\r\n"


def test_a_body_that_says_it_is_too_large_is_refused_unread(gateway):
    begin = time.monotonic()
    found = raw(gateway, [HEAD + b"Content-Length: 1073741824\r\n\r\n"])
    assert found.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in found
    assert time.monotonic() - begin < 2


def test_an_endless_chunked_body_is_cut_at_the_limit(gateway):
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    found = raw(gateway, [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 64], 3)
    assert not found or found.startswith(b"HTTP/1.1 413")
    assert gateway.post().status_code == 200


def test_a_body_of_too_many_chunks_is_refused(gateway):
    found = raw(gateway, [HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 65_540 + b"0\r\n\r\n"], 10)
    assert b"HTTP/1.1 413" in found[:20]


@pytest.mark.parametrize(("size", "status"), [(32_000, 200), (33_000, 413)])
def test_headers_are_bounded(gateway, size, status):
    response = httpx.get(f"{gateway.url}/v2/health/live", headers={"X-Pad": "a" * size})
    assert response.status_code == status


@pytest.mark.parametrize(("size", "status"), [(1 << 20, 400), ((1 << 20) + 1, 413)])
def test_the_body_limit_is_exact(gateway, size, status):
    error(gateway.post(content=b" " * size), status)


def test_a_full_queue_is_an_immediate_503(gateway):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: gateway.post("/v2/models/slow/infer"), range(8)))
    refused = [response for response in found if response.status_code != 200]
    assert len(found) - len(refused) >= 2
    assert refused
    for response in refused:
        assert error(response, 503, "Exceeds maximum queue size").headers["retry-after"] in {"1", "2"}
        assert response.elapsed.total_seconds() < 0.25


def test_deadlines_come_from_header_parameter_and_endpoint(gateway, house):
    late = gateway.post("/v2/models/slow/infer", headers={"X-Request-Timeout-Ms": "50"})
    assert error(late, 503, "Request timeout expired").headers["retry-after"] == "1"
    body = request() | {"parameters": {"timeout": 50_000}}
    error(gateway.post("/v2/models/slow/infer", json=body), 503, "Request timeout expired")
    error(gateway.post(headers={"X-Request-Timeout-Ms": "0"}), 400)
    until(lambda: len(house.replicas["slow"].cancelled) >= 2)
    seen = house.replicas["slow"].seen[-1]
    assert 0 < seen.timeout_ms <= 50


def test_an_endpoint_without_a_replica_answers_503_at_its_deadline(gateway):
    assert error(gateway.post("/v2/models/empty/infer"), 503).headers["retry-after"] == "1"
    error(gateway.post("/v2/models/empty/versions/1/infer"), 404)


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("invalid_input", 400, "too long at ..."),
        ("model_failed", 500, "The model raised an error."),
        ("invalid_output", 502, "NaN or infinity"),
        ("out_of_memory", 507, "out of memory"),
        ("poison_input", 422, "too long"),
        ("overloaded", 503, ""),
        ("nonsense", 500, "The server failed."),
    ],
)
def test_faults_of_a_replica_keep_its_insides_to_themselves(gateway, house, code, status, text):
    fault = Fault(0, code, "too long at /home/someone/model.py")
    house.replicas["r1"].fault = house.replicas["r2"].fault = fault
    response = error(gateway.post(), status, text)
    assert response.headers["x-error-code"] in {code, "internal"}
    assert "/home" not in response.text


def test_a_caller_who_leaves_is_cancelled(gateway, house):
    slow = house.replicas["slow"]
    before, slow.latency_s = len(slow.cancelled), 2.0
    try:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{gateway.url}/v2/models/slow/infer",
                json=request(),
                headers={"Authorization": "Bearer ser_all.s2"},
                timeout=0.1,
            )
        until(lambda: len(slow.cancelled) > before, 0.4)
    finally:
        slow.latency_s = 0.3


def test_a_slow_header_is_cut_after_ten_seconds(gateway):
    begin = time.monotonic()
    raw(gateway, [b"POST /v2/models/mlp/infer HTTP/1.1\r\nHos"], 15)
    assert 9 < time.monotonic() - begin < 12


def test_many_slow_large_bodies_together_are_bounded(gateway):
    """None of them ends; what has arrived of all of them stays below the memory set aside, and small ones pass."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port))) for _ in range(12)]
        for peer in peers:
            peer.sendall(HEAD + b"Content-Length: 1048576\r\n\r\n" + b" " * 1_000_000)
        until(lambda: len(select.select(peers, [], [], 0)[0]) >= 4)
        told = [peer.recv(4096) for peer in select.select(peers, [], [], 0)[0]]
        assert all(text.startswith(b"HTTP/1.1 503") for text in told)
        assert 12 - len(told) in {7, 8}
        assert gateway.post().status_code == 200
    until(lambda: gateway.post(content=b" " * 900_000).status_code == 400)


@pytest.mark.parametrize("path", ["/v2/models/%6dlp/infer", "/v2/models/mlp%2finfer", "/v2%2fmodels/mlp/infer"])
def test_an_address_with_escapes_is_no_address(gateway, path):
    """A proxy that forbids an address must not be talked into passing it under another spelling."""
    assert raw(
        gateway, [HEAD.replace(b"/v2/models/mlp/infer", path.encode()) + b"Content-Length: 2\r\n\r\n{}"], 2
    ).startswith(b"HTTP/1.1 404")
