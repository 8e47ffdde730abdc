"""The supervisor's client: blocking, for the agent's threads and the command line. One socket, reconnected when lost."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from inference.errors import BY_CODE, ServerError
from inference.protocol.frames import Decoder, encode
from inference.protocol.supervision import (
    Converge,
    FromSupervisor,
    Look,
    Refused,
    ReplicaSpec,
    Restart,
    Seen,
    ValidationSpec,
)

READ_BYTES = 1 << 16


class SupervisorUnreachable(ServerError):
    """The supervisor of this host does not answer."""

    code = "supervisor_unreachable"
    retryable = True


class SupervisorClient:
    """Safe to share between threads; one question at a time.

    Each question raises SupervisorUnreachable when there is no answer within `timeout_s`, or the error of
    inference.errors that the supervisor refused with. Asking again changes nothing that was done.
    """

    def __init__(self, path: Path | str, *, timeout_s: float = 5.0) -> None:
        self._path = str(path)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None

    def converge(self, replicas: Sequence[ReplicaSpec], validations: Sequence[ValidationSpec] = ()) -> Seen:
        """Have exactly these replicas and at least these validations."""
        return self._ask(Converge(list(replicas), list(validations)))

    def look(self) -> Seen:
        """What is there; changes nothing."""
        return self._ask(Look())

    def restart(self, replica: str) -> Seen:
        """Kill this replica now; it comes back at once. Raises NotFound."""
        return self._ask(Restart(replica))

    def close(self) -> None:
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, message: msgspec.Struct) -> Seen:
        data = encode(message)
        with self._lock:
            answer = self._exchange(data)
        if isinstance(answer, Refused):
            raise BY_CODE.get(answer.code, ServerError)(answer.message)
        return answer

    def _exchange(self, data: bytes) -> FromSupervisor:
        """Once more on a new connection when a held one turns out to be dead: questions are idempotent."""
        is_fresh = self._sock is None
        try:
            return self._once(data)
        except (OSError, SupervisorUnreachable) as error:
            self._drop()
            if is_fresh or isinstance(error, TimeoutError):
                raise SupervisorUnreachable(f"the supervisor at {self._path} does not answer: {error}") from error
        try:
            return self._once(data)
        except OSError as error:
            self._drop()
            raise SupervisorUnreachable(f"the supervisor at {self._path} does not answer: {error}") from error

    def _once(self, data: bytes) -> FromSupervisor:
        sock = self._sock = self._sock or self._connect()
        with contextlib.suppress(BrokenPipeError):
            # A refusal may be waiting to be read on a connection that no longer takes questions.
            sock.sendall(data)
        decoder: Decoder[FromSupervisor] = Decoder(FromSupervisor, max_body_bytes=0)
        while True:
            piece = sock.recv(READ_BYTES)
            if not piece:
                self._drop()
                raise SupervisorUnreachable("the supervisor hung up")
            for message, _ in decoder.feed(piece):
                return message

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self._timeout_s)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            raise
        return sock

    def _drop(self) -> None:
        if self._sock:
            self._sock.close()
            self._sock = None
