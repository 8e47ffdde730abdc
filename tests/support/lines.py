"""A gateway's connection to a replica, blocking, for tests that speak to a replica without a gateway."""

from __future__ import annotations

import socket
from typing import Self

from inference.protocol.frames import Decoder, encode
from inference.protocol.messages import Answer, Fault, FromReplica, Infer, TensorHeader


class Line:
    """One connection; `hear` gives the frames as they come."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(address.removeprefix("unix:"))
        self.decoder: Decoder[FromReplica] = Decoder(FromReplica)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def hear(self) -> tuple[FromReplica, bytes]:
        while True:
            data = self.sock.recv(1 << 16)
            if not data:
                raise ConnectionError("the replica hung up")
            for message, body in self.decoder.feed(data):
                return message, bytes(body)

    def ask(self, tensor: TensorHeader, data: bytes, timeout_ms: int = 20_000) -> tuple[Answer, bytes] | Fault:
        """One request and its answer."""
        self.sock.sendall(encode(Infer(7, timeout_ms, [tensor]), data))
        message, body = self.hear()
        if isinstance(message, Fault):
            return message
        assert isinstance(message, Answer), message
        return message, body
