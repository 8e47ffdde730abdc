"""An open WebSocket on a connection that began as HTTP: the transport's side of it.

Callbacks and no task: an idle one is a few small objects. Messages come to its owner one by one, and stop coming while
the owner holds it: what is read then is at most one read's worth, and the client is not read any further. A large
binary message is received where its owner wants it. Messages count among the bodies that the gateway holds, from their
first bytes on. What is sent in one turn of the event loop leaves together (uvloop gathers the writes).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol, cast

from inference.errors import Overloaded
from inference.gateway import rfc6455
from inference.gateway.bodies import SMALL_BYTES, Bodies, Held
from inference.gateway.rfc6455 import Parser, Violation

WRITE_HIGH_BYTES = 256 << 10
JOIN_BYTES = 64 << 10
LINGER_S = 1.0
SCRATCH_BYTES = 64 << 10
_scratch = memoryview(bytearray(SCRATCH_BYTES))
_PING = rfc6455.frame_head(rfc6455.PING, 0)

Part = bytes | memoryview


class Owner(Protocol):
    """Whom a socket tells what happens on it. Nothing may be raised."""

    def message(self, data: Part, held: Held | None, *, is_text: bool) -> None:
        """held: what the gateway counts for it, None for a small one; to be released when it is of no use any more."""
        ...

    def place(self, first: bytes, size: int, is_whole: bool) -> memoryview | None:
        """Where a large binary message shall be received: see rfc6455.Place."""
        ...

    def flow(self) -> None:
        """The client began to take what is sent, or stopped: see Socket.is_writable."""
        ...

    def closed(self) -> None:
        """No message will come any more, and none can be sent. Called once."""
        ...

    def lost(self) -> None:
        """The connection is gone. Called once, the last of all."""
        ...


class Socket(asyncio.BufferedProtocol):
    """One open WebSocket."""

    __slots__ = (
        "_bodies", "_held", "_is_closed", "_is_deaf", "_is_held", "_is_lost", "_is_paused", "_owner", "_parser", "_transport", "closing_since",
        "heard", "partial_since", "stalled_since",
    )  # fmt: skip

    def __init__(
        self,
        transport: asyncio.BaseTransport,
        owner: Owner,
        bodies: Bodies,
        *,
        max_text_bytes: int,
        max_binary_bytes: int,
    ) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._owner = owner
        self._bodies = bodies
        self._held: Held | None = None  # for messages that are not whole yet
        most = bodies.limit_bytes
        self._parser = Parser(
            max_text=min(max_text_bytes, most), max_binary=min(max_binary_bytes, most), place=owner.place
        )
        self._is_held = False
        self._is_paused = False
        self._is_closed = False  # a close frame was sent
        self._is_deaf = False  # what comes means nothing any more
        self._is_lost = False
        self.heard = time.monotonic()  # when the client sent anything
        self.partial_since = 0.0  # when a message began that is not whole yet; 0: none
        self.stalled_since = 0.0  # when the client began to take nothing; 0: it takes
        self.closing_since = 0.0
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        self._transport.set_protocol(self)

    # -- what the event loop calls ----------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return _scratch if self._parser.payload is None else self._parser.room or _scratch

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_deaf:
            return
        self.heard = time.monotonic()
        parser = self._parser
        if parser.payload is not None and parser.room is not None:
            parser.came(nbytes)
        else:
            parser.feed(bytes(_scratch[:nbytes]))
        self._pump()

    def take(self, data: bytes) -> None:
        """What the client sent before this was made."""
        self._parser.feed(data)
        self._pump()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._forget()
        self._end()
        self._owner.lost()

    def pause_writing(self) -> None:
        self.stalled_since = time.monotonic()
        self._owner.flow()

    def resume_writing(self) -> None:
        self.stalled_since = 0.0
        self._owner.flow()

    # -- reading ----------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """No message comes until `release`; soon the client is not read any further."""
        self._is_held = True

    def release(self) -> None:
        if self._is_held:
            self._is_held = False
            self.heard = time.monotonic()  # who was not read was not silent
            self.partial_since = 0.0
            asyncio.get_running_loop().call_soon(self._pump)

    @property
    def is_held(self) -> bool:
        return self._is_held

    def _pump(self) -> None:
        parser = self._parser
        try:
            while not self._is_held and not self._is_lost:
                found = parser.next()
                if found is None:
                    break
                self._take(*found)
            if not parser.is_between:
                self._count(parser.kept_bytes)
        except Violation as error:
            self._refuse(error.code, error.reason)
        except Overloaded:
            self._refuse(rfc6455.TRY_AGAIN, "messages that are on their way fill the memory that is set aside for them")
        self._read_on()

    def _refuse(self, code: int, reason: str) -> None:
        self.close(code, reason)
        self._is_deaf = True
        self._forget()
        # a client that still sends would be told "reset" and lose the reason: read on for a moment, to nowhere
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)

    def _forget(self) -> None:
        self._parser.forget()
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def _count(self, size: int) -> None:
        """So much is here of messages that are not given out. Raises Overloaded."""
        if self._held is None:
            if size <= SMALL_BYTES:
                return
            self._held = Held(self._bodies)
        self._held.grow(min(size, self._bodies.limit_bytes))  # the parser bounds messages; more is what lies behind one

    def _take(self, opcode: int, payload: Part) -> None:
        if opcode & 8:
            self._control(opcode, bytes(payload))
            return
        held = None
        if self._held is not None or len(payload) > SMALL_BYTES:
            self._count(len(payload))
            held, self._held = self._held, None
        if not self._is_closed:
            self._owner.message(payload, held, is_text=opcode == rfc6455.TEXT)
        elif held is not None:
            held.release()

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == rfc6455.CLOSE:
            code = rfc6455.close_code(payload)
            self.close(rfc6455.OK if code == rfc6455.NO_CODE else code)
            self._transport.close()
        elif opcode == rfc6455.PING and not self._is_closed:
            self._transport.write(rfc6455.frame_head(rfc6455.PONG, len(payload)) + payload)

    def _read_on(self) -> None:
        is_between = self._parser.is_between
        if is_between:
            self.partial_since = 0.0
        elif not self.partial_since:
            self.partial_since = self.heard
        if self._is_lost or self._is_held == self._is_paused:
            return
        if self._is_held and not is_between:
            self._is_paused = True
            self._transport.pause_reading()
        elif not self._is_held:
            self._is_paused = False
            self._transport.resume_reading()

    # -- writing ----------------------------------------------------------------------------------------------------

    @property
    def is_writable(self) -> bool:
        """Whether the client takes what is sent; else at most a last frame belongs here."""
        return not self.stalled_since

    @property
    def is_open(self) -> bool:
        return not self._is_closed and not self._is_lost

    def send(self, parts: Sequence[Part], *, is_text: bool) -> None:
        """Puts a message on its way; nothing happens on a connection that is closing."""
        if self._is_closed or self._is_lost:
            return
        size = 0
        for part in parts:
            size += len(part)
        head = rfc6455.frame_head(rfc6455.TEXT if is_text else rfc6455.BINARY, size)
        if size <= JOIN_BYTES:
            self._transport.write(b"".join((head, *parts)))
        else:
            self._transport.writelines((head, *parts))

    def ping(self) -> None:
        if self.is_open:
            self._transport.write(_PING)

    def close(self, code: int, reason: str = "") -> None:
        """Begins, or answers, the closing handshake; what is sent after this is dropped."""
        if self._is_closed:
            return
        if not self._is_lost:
            self._transport.write(rfc6455.close_frame(code, reason))
        self.closing_since = time.monotonic()
        if self._is_held:
            self._is_held = False
            asyncio.get_running_loop().call_soon(self._pump)
        self._end()

    def leave(self, code: int, reason: str = "") -> None:
        """Says goodbye and closes without waiting for the answer."""
        self.close(code, reason)
        self._transport.close()

    def cut(self) -> None:
        """Ends the connection, whatever waits on it."""
        if not self._is_lost:
            self._transport.abort()

    def _end(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._owner.closed()
