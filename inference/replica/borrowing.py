"""The blocks of memory that one gateway lends over its connection: inputs are read where they lie, answers written.

A descriptor comes beside one byte of the stream, so reading by the event loop stops for it: 1. the gateway says Lend
and nothing more, 2. reading stops and Hand is said, 3. the byte and the descriptor come, are taken by hand and mapped,
4. Mapped is said, and reading goes on.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import socket
from collections.abc import Callable

import msgspec

from inference.errors import Malformed
from inference.protocol import blocks
from inference.protocol.messages import Hand, Lend, Mapped

log = logging.getLogger(__name__)
MAX_BLOCKS = 1024
HAND_S = 5.0


class Borrower:
    """What one connection was lent. send: says a message; cut: ends the connection."""

    def __init__(self, send: Callable[[msgspec.Struct], None], cut: Callable[[], None]) -> None:
        self._send = send
        self._cut = cut
        self._blocks: dict[int, mmap.mmap] = {}
        self._socket: socket.socket | None = None
        self._expected: Lend | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._then: Callable[[], None] = lambda: None

    @property
    def is_waiting(self) -> bool:
        """Whether the next byte of the stream is a descriptor's: nobody else may read it."""
        return self._expected is not None

    def lend(self, message: Lend, descriptor: int, then: Callable[[], None]) -> None:
        """Reading of the connection with this descriptor has stopped; `then` lets it go on. Raises Malformed."""
        if len(self._blocks) >= MAX_BLOCKS or message.number in self._blocks:
            raise Malformed("a block was lent twice, or too many were")
        loop = asyncio.get_running_loop()
        self._expected, self._then = message, then
        self._socket = socket.socket(fileno=os.dup(descriptor))
        self._timer = loop.call_later(HAND_S, self._cut)
        loop.add_reader(self._socket.fileno(), self._came)
        self._send(Hand(message.number))

    def returned(self, number: int) -> None:
        """The gateway gives it up; it is unmapped when no request reads it any more."""
        self._blocks.pop(number, None)

    def part(self, number: int, at: int, size: int) -> memoryview:
        """`size` bytes of a block. Raises Malformed."""
        block = self._blocks.get(number)
        if block is None or not 0 <= at <= at + size <= len(block):
            raise Malformed("the request's tensors lie in no block that was lent")
        return memoryview(block)[at : at + size]

    def size_of(self, number: int) -> int:
        """0 for a block that is not there."""
        block = self._blocks.get(number)
        return 0 if block is None else len(block)

    def close(self) -> None:
        """The connection has ended."""
        self._stop_waiting()
        self._blocks.clear()

    def _came(self) -> None:
        lent, source = self._expected, self._socket
        assert lent is not None
        assert source is not None
        try:
            data, descriptors, _, _ = socket.recv_fds(source, 1, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        self._stop_waiting()
        if not data:
            self._cut()
            return
        self._map(lent, descriptors)
        self._then()

    def _map(self, lent: Lend, descriptors: list[int]) -> None:
        try:
            for descriptor in descriptors:
                found = blocks.mapped(descriptor, lent.size_bytes, is_writable=lent.is_for_answers)
                self._blocks[lent.number] = found
                self._send(Mapped(lent.number))
        except (OSError, Malformed) as error:  # it is not used, and all goes through the socket
            log.warning("a block could not be mapped: %s", error)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _stop_waiting(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
        if self._timer is not None:
            self._timer.cancel()
        self._socket = self._expected = self._timer = None
