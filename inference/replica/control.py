"""The child's line to its supervisor. Its end is the child's end: a replica without a parent must not live on."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable

import msgspec

from inference.errors import ClientError
from inference.protocol.child import AdapterAt, Drain, SetAdapters, ToChild
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
        self._adapters: Callable[[list[AdapterAt]], None] | None = None
        self._last_adapters: list[AdapterAt] | None = None

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

    def on_adapters(self, want: Callable[[list[AdapterAt]], None]) -> None:
        """`want` is called with all adapters that there shall be, in the thread that hears; at once where that was said
        already.
        """
        with self._lock:
            self._adapters, last = want, self._last_adapters
        if last is not None:
            want(last)

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
                elif isinstance(message, SetAdapters):
                    self._set_adapters(message.adapters)
        os._exit(0)

    def _set_adapters(self, adapters: list[AdapterAt]) -> None:
        with self._lock:
            self._last_adapters, want = adapters, self._adapters
        if want is not None:
            want(adapters)

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(READ_BYTES)
        except OSError:
            return b""
