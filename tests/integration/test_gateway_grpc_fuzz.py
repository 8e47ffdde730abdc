"""Malformed messages get a typed status each, malformed frames a GOAWAY, and the gateway goes on."""

import random

import pytest
import tritonclient.grpc as triton

from inference.gateway.http2 import frames
from inference.gateway.http2.frames import Code
from tests.support.gateway_house import House, free_port
from tests.support.grpc_fuzz import fuzz, golden
from tests.support.grpc_peer import INFER, call, message, said, trailers
from tests.support.http2_peer import BEGIN, Peer, data


@pytest.fixture(scope="module")
def house():
    found = House()
    found.replica()
    gateway = found.gateway(SERINUS_GRPC_PORT=str(free_port()), SERINUS_ALLOW_CLIENT_SHM="1")
    found.publish(found.table())
    gateway.wait_live().wait_ready()
    yield found
    found.close()


def goes_on(gateway):
    assert gateway.process.poll() is None
    assert "Traceback" not in gateway.log.read_text()
    with triton.InferenceServerClient(gateway.grpc_address) as client:
        assert client.is_model_ready("mlp", headers={"x-api-key": "ser_all.s2"})


@pytest.mark.parametrize("seed", range(4))
def test_a_malformed_message_gets_a_typed_status(house, seed):
    gateway = house.gateways[0]
    seen = fuzz(gateway.grpc_address, 250, seed, "ser_all.s2")
    assert seen["INVALID_ARGUMENT"] > 30
    assert seen["OK"] > 10
    assert sum(seen.values()) == 250
    goes_on(gateway)


# -- frames ------------------------------------------------------------------------------------------------------------


def test_malformed_frames_end_their_connection_and_nothing_else(house):
    """Good conversations with a few bytes changed, through a socket each: the gateway answers in frames, and goes on."""
    gateway, chance = house.gateways[0], random.Random(3)
    body = message(golden()[INFER][0])
    ends = {True: 0, False: 0}
    for _ in range(400):
        peer = Peer()
        good = bytearray(
            BEGIN + peer.head(1, call()) + data(1, body, ends=True, padding=3) + frames.ping(bytes(8), is_ack=False)
            + peer.head(3, call()) + data(3, body[:20]) + data(3, body[20:], ends=True) + frames.window_update(0, 9)
        )  # fmt: skip
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(24, len(good))
            match chance.randrange(4):
                case 0 | 1:
                    good[at] = chance.randrange(256)
                case 2:
                    good[at:at] = chance.randbytes(chance.randint(1, 9))
                case _:
                    del good[at : at + chance.randint(1, 9)]
        found = said(gateway, bytes(good), until_closed=True)
        ends[any(one.kind == frames.GOAWAY for one in found)] += 1
    assert min(ends.values()) > 40
    goes_on(gateway)


def test_a_message_may_lie_across_frames_as_it_likes(house):
    body = message(golden()[INFER][0])
    for size in (1, 3, 5, 6, 50):
        what = BEGIN + Peer().head(1, call())
        for at in range(0, len(body), size):
            what += data(1, body[at : at + size], padding=at % 3 - 1)
        found = said(house.gateways[0], what + data(1, ends=True))
        assert trailers(found)["grpc-status"] == "0"
        assert found[-2].kind == frames.DATA


def test_who_has_no_key_is_refused_before_the_message_comes(house):
    what = BEGIN + Peer().head(1, call(key="ser_all.wrong")) + data(1, b"\0" + (8 << 20).to_bytes(4, "big"))
    assert trailers(said(house.gateways[0], what))["grpc-status"] == "16"


def test_who_may_not_use_a_model_is_refused_when_its_tensors_begin(house):
    request = golden(model="other")[INFER][2][:60]
    what = BEGIN + Peer().head(1, call(key="ser_one.s1")) + data(1, b"\0" + (8 << 20).to_bytes(4, "big") + request)
    what += data(1, b"\x3a\x80\x80\x80\x03" + bytes(100))
    assert trailers(said(house.gateways[0], what))["grpc-status"] in {"3", "7"}


REFUSED = {
    "a message too large": (call(), b"\0\x7f\xff\xff\xff", "8"),
    "a message in the middle": (call(), b"\0\0\0\0\x09abc", "3"),
    "no message": (call(), b"", "3"),
    "two messages": (call("/inference.GRPCInferenceService/ServerLive"), message(b"") * 2, "3"),
    "a compressed message of no encoding": (call(), b"\1\0\0\0\1x", "3"),
    "a broken gzip": (call(grpc_encoding="gzip"), b"\1\0\0\0\1x", "3"),
    "an unknown encoding": (call(grpc_encoding="br"), message(b""), "12"),
    "a timeout of no unit": (call(grpc_timeout="5"), message(b""), "3"),
    "binary metadata that are none": (call(a_bin="%"), message(b""), "3"),
    "metadata too large": (call(much="x" * 20_000), message(b""), "8"),
}


@pytest.mark.parametrize(("fields", "body", "status"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_with_a_call_has_its_status(house, fields, body, status):
    found = said(house.gateways[0], BEGIN + Peer().head(1, fields) + data(1, body, ends=True))
    assert trailers(found)["grpc-status"] == status
    assert trailers(found)["grpc-message"]


def test_what_is_no_grpc_is_told_in_http(house):
    gateway = house.gateways[0]
    get = [(":method", "GET"), *call()[1:]]
    page = [(name, "text/html" if name == "content-type" else value) for name, value in call()]
    for fields, status in ((get, "405"), (page, "415")):
        assert trailers(said(gateway, BEGIN + Peer().head(1, fields, ends=True)))[":status"] == status
    found = said(gateway, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", until_closed=True)
    assert [int.from_bytes(one.payload[4:8], "big") for one in found if one.kind == frames.GOAWAY] == [
        Code.PROTOCOL_ERROR
    ]
