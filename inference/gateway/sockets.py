"""The sockets under the ASGI server, reached by their peers' addresses.

granian's own close waits until the client sends something: while a receive is pending it cannot be given up. So a
close that the server begins is written to the connection's socket here, as RFC 6455 has it, and a client who does not
answer it is cut off. Nothing else may be writing to that connection meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator

KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
USER_TIMEOUT_MS = 60_000
_DESCRIPTORS = "/proc/self/fd"

Peer = tuple[str, int]


def peer_of(client: object) -> Peer | None:
    """The address in an ASGI scope's `client`."""
    if isinstance(client, list | tuple) and len(client) == 2:
        with contextlib.suppress(ValueError):
            return str(client[0]), int(client[1])
    return None


def close_frame(code: int, reason: str) -> bytes:
    """An unmasked close frame; `reason` has at most 123 bytes."""
    payload = struct.pack(">H", code) + reason.encode()[:123]
    return bytes((0x88, len(payload))) + payload


def close(frames: dict[Peer, bytes]) -> None:
    """Writes each peer's close frame to its connection."""
    _each(frames, lambda peer, found: _write(found, frames[peer]))


def cut(peers: set[Peer]) -> None:
    """Shuts these peers' connections down, whatever waits on them."""
    _each(dict.fromkeys(peers, b""), lambda _, found: found.shutdown(socket.SHUT_RDWR))


def watch_peers(port: int) -> None:
    """Has the kernel end connections whose peer is gone: accepted sockets inherit it from the listener on `port`."""
    for found in _sockets():
        if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and found.getsockname()[1] == port:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE:
                found.setsockopt(socket.IPPROTO_TCP, option, value)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def _write(found: socket.socket, frame: bytes) -> None:
    if found.send(frame, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) != len(frame):
        found.shutdown(socket.SHUT_RDWR)


def _each(wanted: dict[Peer, bytes], act: Callable[[Peer, socket.socket], object]) -> None:
    for found in _sockets():
        with contextlib.suppress(OSError):
            peer = found.getpeername()[:2]
            if peer in wanted:
                try:
                    act(peer, found)
                except OSError:
                    found.shutdown(socket.SHUT_RDWR)


def _sockets() -> Iterator[socket.socket]:
    """This process's TCP sockets, each as a duplicate that is closed again."""
    for name in os.listdir(_DESCRIPTORS) if os.path.isdir(_DESCRIPTORS) else []:  # noqa: PTH112, PTH208
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as found:
            if found.family in {socket.AF_INET, socket.AF_INET6}:
                yield found
