"""A WebSocket on a connection that began as HTTP: RFC 6455 by the `websockets` package's I/O-free protocol.

A reader that falls behind pauses only its own connection: incoming messages beyond a few stop the reading, and
`drained` holds whoever writes until the client has taken what is there.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import time
from collections import deque
from typing import cast

from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State

from inference.errors import Malformed
from inference.gateway.heads import Head

AHEAD = 4
AHEAD_BYTES = 1 << 20
WRITE_HIGH_BYTES = 256 << 10
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def handshake(head: Head, subprotocol: str | None) -> bytes:
    """The answer that opens a WebSocket. Raises Malformed."""
    key = head.headers.get(b"sec-websocket-key", b"")
    try:
        is_key = len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        is_key = False
    if not is_key or head.headers.get(b"sec-websocket-version") != b"13" or not head.is_http11:
        raise Malformed("the WebSocket handshake is not that of RFC 6455")
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"upgrade: websocket",
        b"connection: Upgrade",
        b"sec-websocket-accept: " + accept,
    ]
    if subprotocol:
        lines.append(b"sec-websocket-protocol: " + subprotocol.encode("latin-1"))
    return b"\r\n".join([*lines, b"", b""])


def subprotocols(head: Head) -> list[str]:
    """What the client offers, in its order."""
    given = head.headers.get(b"sec-websocket-protocol", b"").decode("latin-1")
    return [item.strip() for item in given.split(",") if item.strip()]


class Socket(asyncio.Protocol):
    """One open WebSocket. Messages are whole: a text as str, a binary one as bytes."""

    def __init__(self, transport: asyncio.Transport, *, max_bytes: int) -> None:
        self._transport = transport
        self._protocol = Protocol(Side.SERVER, state=State.OPEN, max_size=max_bytes)
        self._messages: deque[str | bytes] = deque()
        self._bytes = 0
        self._parts: list[bytes] = []
        self._is_text = False
        self._is_paused = False
        self._is_lost = False
        self.stalled_since = 0.0  # when the client began to take nothing; 0: it takes
        self._reader: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        transport.set_protocol(self)

    # -- what the event loop calls ----------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        self._flush()
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._frame(event)
        if self._bytes > AHEAD_BYTES or len(self._messages) > AHEAD:
            self._pause()
        self._wake_reader()

    def eof_received(self) -> bool:
        self._protocol.receive_eof()
        self._flush()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._wake_reader()
        self.resume_writing()

    def pause_writing(self) -> None:
        self.stalled_since = time.monotonic()
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        self.stalled_since = 0.0
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    # -- reading ----------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return not self._is_lost and self._protocol.state is State.OPEN

    async def receive(self) -> str | bytes | None:
        """The next message; None when there will be none."""
        while not self._messages:
            if self._is_lost or self._protocol.state is not State.OPEN:
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message = self._messages.popleft()
        self._bytes -= len(message)
        if self._is_paused and len(self._messages) <= AHEAD // 2 and not self._is_lost:
            self._is_paused = False
            self._transport.resume_reading()
        return message

    def _frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            self._is_text = opcode is Opcode.TEXT
        elif opcode is not Opcode.CONT:
            return
        data = bytes(frame.data)
        if self._parts or not frame.fin:
            self._parts.append(data)
            if not frame.fin:
                return
            data = b"".join(self._parts)
            self._parts = []
        try:
            message: str | bytes = data.decode() if self._is_text else data
        except UnicodeDecodeError:
            self._protocol.fail(1007, "a text frame is not UTF-8")
            self._flush()
            return
        self._messages.append(message)
        self._bytes += len(message)

    def _pause(self) -> None:
        if not self._is_paused and not self._is_lost:
            self._is_paused = True
            self._transport.pause_reading()

    def _wake_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            reader.set_result(None)

    # -- writing ----------------------------------------------------------------------------------------------------

    def send(self, message: str | bytes) -> None:
        """Puts a message on its way; nothing happens on a connection that is closing."""
        if not self.is_open:
            return
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._flush()

    def ping(self) -> None:
        if self.is_open:
            self._protocol.send_ping(b"")
            self._flush()

    async def drained(self) -> None:
        """Waits until the client has taken most of what was sent."""
        while self._writable is not None:
            await asyncio.shield(self._writable)

    def close(self, code: int, reason: str = "") -> None:
        """Begins the closing handshake; what is sent after this is dropped."""
        if self.is_open:
            self._protocol.send_close(code, reason)
            self._flush()
            self._wake_reader()

    def cut(self) -> None:
        """Ends the connection, whatever waits on it."""
        if not self._is_lost:
            self._transport.abort()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if self._is_lost or self._transport.is_closing():
                return
            if data:
                self._transport.write(data)
            elif self._transport.can_write_eof():
                self._transport.write_eof()


def of(transport: asyncio.BaseTransport, *, max_bytes: int) -> Socket:
    """Turns a connection into a WebSocket; its handshake has been answered."""
    return Socket(cast("asyncio.Transport", transport), max_bytes=max_bytes)
