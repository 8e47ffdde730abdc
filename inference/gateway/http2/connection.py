"""HTTP/2 on the event loop's own transports: one object a connection, one write a turn of the loop.

The laws: the preface and a header block must be there within HEAD_S, what is sent must be taken within STALL_S (a stream
that the peer's window holds is reset, a socket that takes nothing ends), and a peer that has been silent for QUIET_S is
asked whether it is there. Who takes no answers is read no further than to MAX_OWED_BYTES of them. Payloads of large
frames are received where their receiver wants them.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

from inference.gateway.http2 import frames
from inference.gateway.http2.frames import Code, ConnectionFault, Part
from inference.gateway.http2.machine import Machine
from inference.gateway.http2.streams import Application

HEAD_S = 9.0  # looked at once a second
STALL_S = 30.0
QUIET_S = 60.0
PONG_S = 20.0
LINGER_S = 2.0
DRAIN_S = 1.0
SCRATCH_BYTES = 64 << 10
JOIN_BYTES = 64 << 10
AT_ONCE_BYTES = 4 << 20
MAX_OWED_BYTES = 8 << 20
_scratch = memoryview(bytearray(SCRATCH_BYTES))


class Connection(asyncio.BufferedProtocol):
    """One client's connection. open: the connections of its listener."""

    __slots__ = (
        "_drains_since", "_heard", "_is_closing", "_is_direct", "_is_due", "_is_held", "_is_paused", "_loop", "_made",
        "_open", "_paused_since", "_pinged", "machine", "transport",
    )  # fmt: skip

    def __init__(self, application: Application, connections: set[Connection]) -> None:
        self._loop = asyncio.get_running_loop()
        self._open = connections
        self._made = self._heard = time.monotonic()
        self._pinged = self._paused_since = self._drains_since = 0.0
        self._is_direct = self._is_due = self._is_held = self._is_paused = self._is_closing = False
        self.machine = Machine(application, self._heard)
        self.machine.wake = self.wake
        self.transport: asyncio.Transport

    # -- what the event loop calls ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._open.add(self)
        self.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closing = True
        self._open.discard(self)
        self.machine.let_go()

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self.machine.room()
        self._is_direct = room is not None
        if room is not None:
            return room
        size = self.machine.next_bytes
        return _scratch[:size] if size else _scratch

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = now = time.monotonic()
        if self._is_direct:
            self.machine.filled(nbytes, now)
        else:
            self.machine.receive(bytes(_scratch[:nbytes]), now)
        outbox = self.machine.outbox
        if outbox.size or outbox.may_go or self.machine.is_over:
            self.wake()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._is_paused = True
        self._paused_since = time.monotonic()

    def resume_writing(self) -> None:
        self._is_paused = False
        self._paused_since = 0.0
        if self._is_held:
            self._is_held = False
            self.transport.resume_reading()
        self.wake()

    # -- writing ----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something may leave: it does with all else of this turn."""
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_due = False
        if self._is_closing:
            return
        machine = self.machine
        parts = machine.outbox.take(0 if self._is_paused else AT_ONCE_BYTES, time.monotonic())
        if parts:
            self._write(parts)
            if self._is_paused and not self._is_held and self.transport.get_write_buffer_size() > MAX_OWED_BYTES:
                self._is_held = True  # it asks on and on, and takes no answer
                self.transport.pause_reading()
        if machine.is_over or (machine.is_finished and not machine.outbox.size):
            self._close()
        elif not self._is_paused and machine.outbox.may_go:
            self.wake()

    def _write(self, parts: list[Part]) -> None:
        if len(parts) == 1:
            self.transport.write(parts[0])
            return
        size = 0
        for part in parts:
            size += len(part)
        if size <= JOIN_BYTES:
            self.transport.write(b"".join(parts))
        else:
            self.transport.writelines(parts)

    def _close(self) -> None:
        machine = self.machine
        self._is_closing = machine.is_over = True
        # A client that still sends would be told "reset" and lose what was said: read on for a moment, to nowhere.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._loop.call_later(LINGER_S, self.transport.close)

    def abort(self) -> None:
        """Cuts the connection."""
        self._is_closing = True
        self.transport.abort()

    # -- time -------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Tells the client to begin no more; the connection ends when nothing is under way."""
        if not self._drains_since:
            self._drains_since = time.monotonic()
            self.machine.drain()
            self.wake()

    def beat(self, now: float) -> None:
        """What is due at `now`, once a second."""
        machine = self.machine
        if self._is_closing:
            return
        if self._paused_since and now - self._paused_since > STALL_S:
            self.abort()
        elif (not machine.has_begun and now - self._made > HEAD_S) or (
            machine.block_since and now - machine.block_since > HEAD_S
        ):
            machine.fail(ConnectionFault(Code.ENHANCE_YOUR_CALM, "what began did not come in time"))
        elif now - self._heard > QUIET_S + PONG_S:
            self.abort()
        else:
            self._look(now)
        self.wake()

    def _look(self, now: float) -> None:
        machine = self.machine
        if now - self._heard > QUIET_S and self._pinged < self._heard:
            self._pinged = now
            machine.outbox.put(frames.ping(b"are you?", is_ack=False))
        for stream in machine.outbox.stalled(now - STALL_S) if not self._is_paused else ():
            machine.reset(stream, Code.CANCEL)
        for stream in list(machine.streams.values()):
            if stream.receiver is not None:
                stream.receiver.beat(now)
        if self._drains_since and now - self._drains_since > DRAIN_S:
            machine.drained()
