"""Calls of other models by this replica's model: out by the connection by which the model was asked, and the answers back.

The law: every call is told exactly one end, by an answer, a fault, its time, or the connection's loss, unless it was left.
Tensors are encoded in the model's thread; whatever touches the connection happens in its event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence

from inference.errors import DeadlineExceeded, Overloaded, ReplicaLost, SerinusError, TooLarge, by_code
from inference.models.calling import Named, Question, Scalar, Told
from inference.protocol.frames import MAX_BODY_BYTES, encode, encode_head
from inference.protocol.messages import (
    MAX_CALL_BYTES,
    MAX_CALLS,
    Answer,
    CallModel,
    Cancel,
    Fault,
    Pause,
    Resume,
    TensorHeader,
)
from inference.runtime import tensors

GRACE_S = 1.0  # the gateway's own clock ends a call before ours does
AHEAD_HIGH, AHEAD_LOW = 16, 4
Write = Callable[..., None]


class Got:
    """One answer as it came."""

    def __init__(self, answer: Answer, body: memoryview) -> None:
        self._answer, self._body = answer, body

    @property
    def is_final(self) -> bool:
        return self._answer.final

    @property
    def parameters(self) -> Mapping[str, Scalar]:
        return self._answer.parameters

    def outputs(self) -> list[Named]:
        """Raises InvalidInput where sizes and shapes do not fit each other."""
        found, at = [], 0
        for header in self._answer.tensors:
            data = self._body[at : at + header.size_bytes]
            at += header.size_bytes
            found.append((header.name, header.datatype, tensors.from_bytes(header.datatype, header.shape, data)))
        return found


class OpenCall:
    """A call under way."""

    def __init__(self, calling: Calling, number: int, size: int, told: Told) -> None:
        self._calling = calling
        self.number, self.size, self.told = number, size, told
        self.timer: asyncio.TimerHandle | None = None
        self.unread = 0
        self.is_paused = False

    def took(self) -> None:
        self._calling.later(self._took)

    def leave(self) -> None:
        self._calling.leave(self)

    def _took(self) -> None:
        self.unread -= 1
        if self.is_paused and self.unread <= AHEAD_LOW:
            self.is_paused = False
            self._calling.say(Resume(self.number))


class Calling:
    """The calls on one connection. Made in its event loop; `write` takes the parts of a frame, there."""

    def __init__(self, write: Write) -> None:
        self._loop = asyncio.get_running_loop()
        self._write = write
        self._numbers = itertools.count(1)
        self._guard = threading.Lock()
        self._open: dict[int, OpenCall] = {}
        self._bytes = 0
        self._is_closed = False

    # In any thread

    def call(self, question: Question, parents: Sequence[int], timeout_s: float, told: Told) -> OpenCall:
        """As models.calling.Calls."""
        headers, parts = [], []
        for name, datatype, array in question.inputs:
            data = bytes(tensors.to_bytes(datatype, array))  # the model may write there before it has left
            headers.append(TensorHeader(name, datatype, list(array.shape), len(data)))
            parts.append(data)
        size = sum(map(len, parts))
        if size > MAX_BODY_BYTES:
            raise TooLarge(f"the call has {size} bytes; {MAX_BODY_BYTES} are the limit")
        if timeout_s <= 0:
            raise DeadlineExceeded
        found = self._opened(size, told)
        message = CallModel(
            found.number, list(parents), question.model, question.version, max(1, int(timeout_s * 1e3)), headers,
            list(question.outputs), dict(question.parameters), question.timeout_us, question.sequence,
            question.traceparent, question.request_id, question.many,
        )  # fmt: skip
        head = encode_head(message, size)
        self.later(lambda: self._send(found, timeout_s + GRACE_S, head, *parts))
        return found

    def later(self, act: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the process ends, and its calls with it
            self._loop.call_soon_threadsafe(act)

    def leave(self, call: OpenCall) -> None:
        if self._pop(call.number) is not None:
            self.later(lambda: self._left(call))

    def _opened(self, size: int, told: Told) -> OpenCall:
        with self._guard:
            if self._is_closed:
                raise ReplicaLost("the connection by which other models are called is gone")
            if len(self._open) >= MAX_CALLS or self._bytes + size > MAX_CALL_BYTES:
                raise Overloaded("too many calls of other models are under way here")
            found = OpenCall(self, next(self._numbers), size, told)
            self._open[found.number] = found
            self._bytes += size
        return found

    def _pop(self, number: int) -> OpenCall | None:
        with self._guard:
            found = self._open.pop(number, None)
            if found is not None:
                self._bytes -= found.size
        return found

    # In the event loop

    def received(self, message: Answer | Fault, body: memoryview) -> None:
        """From the gateway. What belongs to no call is of one that was left."""
        if isinstance(message, Fault):
            error = by_code(message.code)(message.message)
            self._end(message.id, error)
        elif message.final:
            self._end(message.id, Got(message, body))
        else:
            found = self._open.get(message.id)
            if found is not None:
                self._part(found, Got(message, body))

    def say(self, message: Pause | Resume | Cancel) -> None:
        self._write(encode(message))

    def close(self) -> None:
        """The connection has ended."""
        with self._guard:
            self._is_closed = True
        for number in list(self._open):
            self._end(number, ReplicaLost("the connection by which other models are called was lost"))

    def _send(self, call: OpenCall, timeout_s: float, *parts: bytes | memoryview) -> None:
        if call.number not in self._open:  # left, or the connection ended, meanwhile
            return
        call.timer = self._loop.call_later(timeout_s, self._late, call)
        self._write(*parts)

    def _part(self, call: OpenCall, got: Got) -> None:
        call.unread += 1
        if call.unread >= AHEAD_HIGH and not call.is_paused:
            call.is_paused = True
            self.say(Pause(call.number))
        _tell(call, got)

    def _late(self, call: OpenCall) -> None:
        if call.number in self._open:
            self.say(Cancel(call.number))
            self._end(call.number, DeadlineExceeded())

    def _left(self, call: OpenCall) -> None:
        if call.timer is not None:
            call.timer.cancel()
            self.say(Cancel(call.number))

    def _end(self, number: int, result: Got | SerinusError) -> None:
        call = self._pop(number)
        if call is None:
            return
        if call.timer is not None:
            call.timer.cancel()
        _tell(call, result)


def _tell(call: OpenCall, result: Got | SerinusError) -> None:
    with contextlib.suppress(RuntimeError):  # the model's own event loop may be gone
        call.told(result)
