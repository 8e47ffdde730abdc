"""A gRPC client by hand, for tests of what goes over the wire: heads, messages, and the frames that come back."""

from __future__ import annotations

import socket

from inference.gateway.http2 import frames
from tests.support.http2_peer import GRPC, Peer, read_frames

INFER = "/inference.GRPCInferenceService/ModelInfer"


def call(path=INFER, key="ser_all.s2", **more):
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
    return [*fields, *GRPC, ("x-api-key", key), *((name.replace("_", "-"), value) for name, value in more.items())]


def message(body):
    return b"\0" + len(body).to_bytes(4, "big") + body


def said(gateway, what, until_closed=False):
    """All frames that the gateway says to `what`, up to the first stream's end or the connection's."""
    host, _, port = gateway.grpc_address.rpartition(":")
    found = b""
    with socket.create_connection((host, int(port)), timeout=10) as peer:
        peer.sendall(what)
        if until_closed:
            peer.shutdown(socket.SHUT_WR)
        while True:
            try:
                more = peer.recv(1 << 16)
            except ConnectionResetError:
                more = b""
            found += more
            at = 0
            while len(found) - at >= 9 and len(found) - at - 9 >= int.from_bytes(found[at : at + 3], "big"):
                is_end = found[at + 3] == frames.RST_STREAM or (found[at + 3] == frames.HEADERS and found[at + 4] & 1)
                at += 9 + int.from_bytes(found[at : at + 3], "big")
                if is_end and not until_closed:
                    return read_frames(found[:at])
            if not more:
                return read_frames(found[:at])


def trailers(frames_of):
    """The fields of the last header block."""
    peer = Peer()
    return [peer.fields(one) for one in frames_of if one.kind == frames.HEADERS][-1]
