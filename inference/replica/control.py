"""The child's line to its supervisor. Its end is the child's end: a replica without a parent must not live on."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable

import msgspec

from inference.errors import ClientError
from inference.protocol.child import Drain, ToChild
from inference.protocol.frames import Decoder, encode

log = logging.getLogger(__name__)
READ_BYTES = 1 << 16


class Control:
    """Sends reports and hears commands on the descriptor that the supervisor gave."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(True)
        self._lock = threading.Lock()
        self._drain: Callable[[float], None] = lambda _: os._exit(0)

    def tell(self, message: msgspec.Struct) -> None:
        """Sends a report, however long that takes. A supervisor that is gone is noticed by `listen`."""
        with self._lock:
            try:
                self._socket.sendall(encode(message))
            except OSError as error:
                log.warning("the supervisor does not hear: %s", error)

    def beat(self, message: msgspec.Struct) -> bool:
        """Sends a report if that is possible at once; False when it was left out: the next one says more."""
        data = encode(message)
        with self._lock:
            try:
                sent = self._socket.send(data, socket.MSG_DONTWAIT)
                if sent < len(data):
                    self._socket.sendall(data[sent:])
            except BlockingIOError:
                return False
            except OSError:
                return False
        return True

    def listen(self) -> None:
        """Hears commands in a thread of its own from now on. Call it after the sandbox was entered.

        Until `on_drain` says otherwise, a child that is told to drain serves nobody yet and ends at once.
        """
        threading.Thread(target=self._hear, name="control", daemon=True).start()

    def on_drain(self, drain: Callable[[float], None]) -> None:
        """`drain` is called with the timeout in seconds, in the thread that hears."""
        self._drain = drain

    def _hear(self) -> None:
        decoder: Decoder[ToChild] = Decoder(ToChild, max_body_bytes=0)
        while data := self._receive():
            try:
                messages = decoder.feed(data)
            except ClientError:
                break
            for message, _ in messages:
                if isinstance(message, Drain):
                    self._drain(message.timeout_s)
        os._exit(0)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(READ_BYTES)
        except OSError:
            return b""
