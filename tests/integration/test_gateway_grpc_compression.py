"""Compressed messages both ways, with the official client and by what goes over the wire."""

import os
import queue
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from inference.gateway.encodings import LEAST_BYTES
from inference.gateway.grpc import wire
from inference.gateway.grpc.exchange import MOST_PACKED_BYTES
from inference.gateway.http2 import frames
from tests.support.grpc_house import KEY, fixtures, raw_request, refused
from tests.support.grpc_peer import INFER, call, message, said, trailers
from tests.support.http2_peer import BEGIN, Peer, data

STREAM = INFER.replace("ModelInfer", "ModelStreamInfer")
ACCEPTS = {"grpc_accept_encoding": "identity, deflate, gzip"}
WBITS = {"gzip": 31, "deflate": 15}
LIMIT_BYTES = 8 << 20  # of the house

house, gateway, client, channel = fixtures()


def packed(body, encoding):
    machine = zlib.compressobj(9, zlib.DEFLATED, WBITS[encoding])
    found = machine.compress(body) + machine.flush()
    return b"\1" + len(found).to_bytes(4, "big") + found


def tensor(size, value=b"\7"):
    """A request for the endpoint that answers with what it was given."""
    request = wire.INFER_REQUEST(model_name="uint8")
    request.inputs.add(name="x", datatype="UINT8", shape=[size // 2, 2])
    request.raw_input_contents.append((value * size)[:size])
    return request.SerializeToString()


def asked(gateway, body, path=INFER, **metadata):
    """(head, the answer's flag, its message as it came) of one call."""
    peer = Peer()
    much = frames.window_update(0, 1 << 24) + frames.window_update(1, 1 << 24)
    found = said(gateway, BEGIN + peer.head(1, call(path, **metadata)) + much + data_of(body))
    assert trailers(found)["grpc-status"] == "0", trailers(found)
    head = Peer().fields(next(one for one in found if one.kind == frames.HEADERS))
    whole = b"".join(one.payload for one in found if one.kind == frames.DATA)
    assert int.from_bytes(whole[1:5], "big") == len(whole) - 5
    return head, whole[0], whole[5:]


def data_of(body):
    parts = [body[at : at + 16_384] for at in range(0, len(body), 16_384)]
    return b"".join(data(1, part, ends=part is parts[-1]) for part in parts)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("path", [INFER, STREAM])
def test_who_packs_its_request_gets_a_packed_answer(gateway, encoding, path):
    head, flag, found = asked(gateway, packed(tensor(40_000), encoding), path, grpc_encoding=encoding, **ACCEPTS)
    assert (head["grpc-encoding"], flag) == (encoding, 1)
    assert len(found) < 1000
    body = zlib.decompress(found, WBITS[encoding])
    answer = (
        wire.INFER_RESPONSE.FromString(body) if path == INFER else wire.STREAM_RESPONSE.FromString(body).infer_response
    )
    assert answer.raw_output_contents[0] == b"\7" * 40_000


PLAIN = {
    "a request that is not packed": (message(tensor(40_000)), ACCEPTS),
    "a client that unpacks nothing": (packed(tensor(40_000), "gzip"), {"grpc_encoding": "gzip"}),
    "a client that unpacks something else": (
        packed(tensor(40_000), "gzip"), {"grpc_encoding": "gzip", "grpc_accept_encoding": "identity,deflate"},
    ),
    "a small answer": (packed(tensor(LEAST_BYTES - 100), "gzip"), {"grpc_encoding": "gzip", **ACCEPTS}),
    "an answer that grows": (packed(tensor(4000, os.urandom(4000)), "gzip"), {"grpc_encoding": "gzip", **ACCEPTS}),
    "a large answer": (packed(tensor(MOST_PACKED_BYTES), "gzip"), {"grpc_encoding": "gzip", **ACCEPTS}),
}  # fmt: skip


@pytest.mark.parametrize(("body", "metadata"), PLAIN.values(), ids=PLAIN)
def test_others_get_it_as_it_is(gateway, body, metadata):
    _, flag, found = asked(gateway, body, **metadata)
    assert flag == 0
    assert wire.INFER_RESPONSE.FromString(found).raw_output_contents[0]


def test_a_large_answer_is_packed_up_to_its_bound(gateway):
    body = packed(tensor(MOST_PACKED_BYTES - 200), "gzip")
    assert asked(gateway, body, grpc_encoding="gzip", **ACCEPTS)[1] == 1


@pytest.mark.parametrize("compression", ["gzip", "deflate", None])
@pytest.mark.parametrize("size", [10, 100_000, 3 << 20])
def test_the_official_client_reads_them(gateway, compression, size):
    given = np.arange(size, dtype=np.uint8).reshape(-1, 2)
    tensor_of = triton.InferInput("x", list(given.shape), "UINT8")
    tensor_of.set_data_from_numpy(given)
    answers = queue.Queue()
    with triton.InferenceServerClient(gateway.grpc_address) as client:
        found = client.infer("uint8", [tensor_of], headers=KEY, compression_algorithm=compression)
        assert (found.as_numpy("y") == given).all()
        assert client.get_model_metadata("uint8", headers=KEY).name == "uint8"
        client.start_stream(
            lambda result, error: answers.put((result, error)), headers=KEY, compression_algorithm=compression
        )
        for _ in range(3):
            client.async_stream_infer("uint8", [tensor_of])
        for _ in range(3):
            result, error = answers.get(timeout=10)
            assert error is None
            assert (result.as_numpy("y") == given).all()
        client.stop_stream()


def resident_bytes(gateway):
    with open(f"/proc/{gateway.process.pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_message_is_bounded_by_what_it_unpacks_to(gateway, encoding):
    """At the limit it is read (and is no message); a byte more is refused, and so is a bomb, before it is unpacked."""
    status = {}
    before = resident_bytes(gateway)
    for size in (LIMIT_BYTES, LIMIT_BYTES + 1, 512 << 20):
        what = BEGIN + Peer().head(1, call(grpc_encoding=encoding)) + data_of(packed(bytes(size), encoding))
        status[size] = trailers(said(gateway, what))["grpc-status"]
    assert list(status.values()) == ["3", "8", "8"]
    assert resident_bytes(gateway) - before < 6 * LIMIT_BYTES


def test_the_official_client_is_told_of_a_tensor_that_unpacks_to_too_much(gateway, channel):
    request = raw_request()
    request.raw_input_contents[0] = bytes(2 * LIMIT_BYTES)
    infer = channel.unary_unary(INFER, type(request).SerializeToString)
    error = refused(lambda: infer(request, metadata=list(KEY.items()), compression=grpc.Compression.Gzip, timeout=20))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_message_of_nothing_but_fields_keeps_nobody_waiting(gateway, client, is_packed):
    """Four million empty fields: read one by one they would take the gateway seconds, in which it does nothing else."""
    body = b"\x1a\0" * (LIMIT_BYTES // 2)
    metadata = {"grpc_encoding": "gzip"} if is_packed else {}
    what = BEGIN + Peer().head(1, call(**metadata)) + data_of(packed(body, "gzip") if is_packed else message(body))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(said, gateway, what)
        longest = 0.0
        while not asking.done():
            began = time.monotonic()
            assert client.is_server_live()
            longest = max(longest, time.monotonic() - began)
    assert trailers(asking.result())["grpc-status"] == "3"
    assert longest < 1.0
