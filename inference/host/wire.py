"""Frames with descriptors beside them (SCM_RIGHTS) on a unix stream socket.

Descriptors come no later than the first byte of their frame and in the frames' order, so they queue up and each
message takes as many as its type carries.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from inference.protocol.frames import Decoder, encode

READ_BYTES = 1 << 16
MAX_DESCRIPTORS = 8
T = TypeVar("T")


class Inbox(Generic[T]):
    """Cuts what arrives into (message, its descriptors). `carried` tells how many a message has.

    Without `carried` no descriptor is taken from the peer, whatever it sends.
    """

    def __init__(self, message_type: object, carried: Callable[[T], int] | None = None) -> None:
        self._decoder: Decoder[T] = Decoder(message_type, max_body_bytes=0)
        self._carried = carried
        self._held: deque[int] = deque()

    def receive(self, sock: socket.socket) -> list[tuple[T, list[int]]] | None:
        """Messages of one read; None at the end of the stream. Raises BlockingIOError, Malformed, TooLarge."""
        if self._carried is None:
            data = sock.recv(READ_BYTES)
        else:
            data, descriptors, _, _ = socket.recv_fds(sock, READ_BYTES, MAX_DESCRIPTORS)
            self._held.extend(descriptors)
        if not data:
            self.close()
            return None
        return [(message, self._take(message)) for message, _ in self._decoder.feed(data)]

    def _take(self, message: T) -> list[int]:
        count = self._carried(message) if self._carried else 0
        return [self._held.popleft() for _ in range(min(count, len(self._held)))]

    def close(self) -> None:
        while self._held:
            os.close(self._held.popleft())


def send(sock: socket.socket, message: msgspec.Struct, descriptors: list[int]) -> None:
    """Send one frame on a blocking socket."""
    data = encode(message)
    sent = socket.send_fds(sock, [data], descriptors) if descriptors else sock.send(data)
    sock.sendall(data[sent:])


async def send_soon(sock: socket.socket, message: msgspec.Struct, descriptors: list[int]) -> None:
    """Send one frame on a non-blocking socket. One sender at a time."""
    data = memoryview(encode(message))
    loop = asyncio.get_running_loop()
    while True:
        try:
            sent = socket.send_fds(sock, [data], descriptors)
        except BlockingIOError:
            await _writable(loop, sock)
        else:
            break
    await loop.sock_sendall(sock, data[sent:])


async def readable(sock: socket.socket) -> None:
    """Return when `sock` can be read."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


async def _writable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
