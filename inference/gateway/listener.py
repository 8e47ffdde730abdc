"""The listening socket: accepts while there is room for one more connection, and lets the kernel's queue hold the rest.

asyncio's own server cannot pause: out of descriptors it would accept and drop. Here accepting stops when the
connections are as many as the process may hold, and goes on when one has left.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

BACKLOG = 4096
AT_ONCE = 64
BEAT_S = 1.0
RETRY_S = 0.05
KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
USER_TIMEOUT_MS = 60_000
_FULL = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_log = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Its connections inherit that the kernel ends those whose peer is gone. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option, value in KEEPALIVE:
            found.setsockopt(socket.IPPROTO_TCP, option, value)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        found.bind((host, port))
        found.listen(BACKLOG)
        found.setblocking(False)
    except OSError:
        found.close()
        raise
    return found


class Connection(Protocol):
    """One client's connection, of whatever protocol; it is in its listener's set for as long as it lives."""

    def beat(self, now: float) -> None:
        """Looks after what is due at `now` (monotonic s)."""
        ...

    def abort(self) -> None:
        """Cuts it."""
        ...


C = TypeVar("C", bound=Connection)


class Listener(Generic[C]):
    """Accepts connections, each of them made by `make` with the set that it is to be in. others: how many connections
    there are beside this listener's in the process's limit.
    """

    def __init__(
        self,
        make: Callable[[set[C]], asyncio.BaseProtocol],
        sock: socket.socket,
        *,
        max_connections: int,
        others: Callable[[], int] = lambda: 0,
    ) -> None:
        self._make_protocol = make
        self._sock = sock
        self._limit = max_connections
        self._others = others
        self._loop = asyncio.get_running_loop()
        self._making: set[asyncio.Task[None]] = set()
        self._is_accepting = False
        self._is_closed = False
        self.connections: set[C] = set()

    def start(self) -> None:
        self._resume()

    def close(self) -> None:
        """Accepts no more."""
        if not self._is_closed:
            self._is_closed = True
            self._pause()
            self._sock.close()

    async def finish(self) -> None:
        """Cuts every connection."""
        for connection in list(self.connections):
            connection.abort()
        await asyncio.sleep(0)

    async def run(self) -> None:
        """Looks after slow, stuck and idle connections, for ever."""
        while True:
            await asyncio.sleep(BEAT_S)
            now = time.monotonic()
            for connection in list(self.connections):
                connection.beat(now)
            if self._has_room:
                self._resume()

    @property
    def _has_room(self) -> bool:
        return len(self.connections) + len(self._making) + self._others() < self._limit

    def _resume(self) -> None:
        if not self._is_accepting and not self._is_closed:
            self._is_accepting = True
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def _pause(self) -> None:
        if self._is_accepting:
            self._is_accepting = False
            self._loop.remove_reader(self._sock.fileno())

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            if not self._has_room:
                self._pause()
                self._loop.call_later(RETRY_S, self._look_again)
                return
            try:
                found, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                _log.warning("no descriptor for one more connection: accepting pauses")
                self._pause()
                self._loop.call_later(RETRY_S, self._look_again)
                return
            task = self._loop.create_task(self._make(found))
            self._making.add(task)
            task.add_done_callback(self._making.discard)

    def _look_again(self) -> None:
        if self._has_room:
            self._resume()
        elif not self._is_closed:
            self._loop.call_later(RETRY_S, self._look_again)

    async def _make(self, found: socket.socket) -> None:
        found.setblocking(False)
        try:
            await self._loop.connect_accepted_socket(lambda: self._make_protocol(self.connections), found)
        except OSError as error:
            _log.debug("a connection was lost at once: %s", error)
            with contextlib.suppress(OSError):
                found.close()
