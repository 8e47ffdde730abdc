"""A TCP proxy on loopback that does to connections what networks do: late, slow, silent, half-open, cut.

Runs on the event loop that starts it. A mode holds for connections that are open as well as for new ones, but for
`blackhole` (accept, never answer), which only new ones meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from dataclasses import dataclass
from typing import Literal

Mode = Literal["pass", "delay", "throttle", "stall", "blackhole", "reset", "cut_after"]
STEP_BYTES = 64 << 10
POLL_S = 0.02


@dataclass
class Weather:
    """delay: each piece comes `delay_ms` (+ up to `jitter_ms`) late; throttle: `bytes_per_s` each way; stall: nothing
    is read any more, and no end is told; reset: both sides get RST; cut_after: RST once `bytes_left` have passed.
    """

    mode: Mode = "pass"
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    bytes_per_s: float = 0.0
    bytes_left: int = 0


class ChaosProxy:
    """Forwards to `port` of loopback, as the weather allows."""

    def __init__(self, port: int, seed: int = 1) -> None:
        self.target = port
        self.port = 0
        self.weather = Weather()
        self.accepted = 0
        self._rng = random.Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> ChaosProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def set(self, mode: Mode, **more: float) -> None:
        self.weather = Weather(mode, **more)  # type: ignore[arg-type]
        if mode == "reset":
            self.reset()

    def reset(self) -> None:
        """Ends every connection with RST."""
        for writer in list(self._writers):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.accepted += 1
        try:
            if self.weather.mode == "reset":
                _reset(writer)
            elif self.weather.mode == "blackhole":
                await asyncio.Event().wait()
            else:
                await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers.add(back)
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        finally:
            self._writers.discard(back)
            back.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while True:
            await self._while_stalled()
            data = await source.read(self._step())
            await self._while_stalled()  # what was on its way when the wire broke is lost with it
            if not data:
                with contextlib.suppress(OSError):
                    sink.write_eof()
                return
            await self._hold(len(data))
            if not self._passes(len(data)):
                self.reset()
                return
            sink.write(data)
            await sink.drain()

    def _step(self) -> int:
        rate = self.weather.bytes_per_s
        return max(1, int(rate / 10)) if self.weather.mode == "throttle" and rate else STEP_BYTES

    async def _while_stalled(self) -> None:
        while self.weather.mode == "stall":  # noqa: ASYNC110 (whoever changes the weather knows nobody here)
            await asyncio.sleep(POLL_S)

    async def _hold(self, size: int) -> None:
        weather = self.weather
        if weather.mode == "delay":
            await asyncio.sleep((weather.delay_ms + self._rng.uniform(0, weather.jitter_ms)) / 1e3)
        elif weather.mode == "throttle" and weather.bytes_per_s:
            await asyncio.sleep(size / weather.bytes_per_s)

    def _passes(self, size: int) -> bool:
        if self.weather.mode != "cut_after":
            return True
        self.weather.bytes_left -= size
        return self.weather.bytes_left > 0


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
