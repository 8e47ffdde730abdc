"""One call: its messages out of DATA frames and into them, and its one status.

A message is five bytes (compressed or not, a length) and so many more, wherever frames begin and end. Large requests
are received where their tensors will be read; what a call holds in memory is counted with all others'. A call is
answered exactly once, and tells its window no more than a message at a time.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from inference.errors import DeadlineExceeded, Malformed, SerinusError, ServerError, TooLarge
from inference.gateway import encodings
from inference.gateway.bodies import SMALL_BYTES, Held
from inference.gateway.grpc import large, statuses
from inference.gateway.grpc.large import Large
from inference.gateway.http2.machine import Machine
from inference.gateway.http2.streams import Receiver, Stream

if TYPE_CHECKING:
    from inference.gateway.grpc.door import Door
    from inference.gateway.grpc.spoken import Spoken
    from inference.gateway.grpc.wire import Message

LEAD_BYTES = 5
MESSAGE_IDLE_S = 30.0
JOIN_BYTES = 16 << 10
MOST_PACKED_BYTES = 256 << 10  # floats take some 50 ms a MiB, in which every other call waits
Body = bytes | Large
Part = bytes | memoryview
_log = logging.getLogger(__name__)


class Exchange(Receiver):
    """One call. is_done: it was answered, or its caller has left."""

    __slots__ = (
        "_compressed",
        "_data",
        "_held",
        "_large",
        "_lead",
        "_need",
        "_size",
        "_waits_since",
        "door",
        "is_done",
        "machine",
        "opened_at",
        "spoken",
        "stream",
    )  # fmt: skip
    is_tensors = False  # whether its messages are ModelInferRequests

    def __init__(self, door: Door, machine: Machine, stream: Stream, spoken: Spoken) -> None:
        self.door = door
        self.machine = machine
        self.stream = stream
        self.spoken = spoken
        self.is_done = False
        self.opened_at = self._waits_since = machine.now
        self._lead = b""  # of the message on its way
        self._need = -1  # its size, once that is known
        self._size = 0  # of what has come of it
        self._compressed = False
        self._data = bytearray()  # of a message that is no large request
        self._large: Large | None = None
        self._held: Held | None = None

    @abstractmethod
    def message(self, data: Body, held: Held | None) -> None:
        """A whole message has come. held: the memory that is counted for it, to be released by who takes it."""

    @abstractmethod
    def drop(self) -> None:
        """What is under way for this call ends; nobody waits for it."""

    # -- what comes -------------------------------------------------------------------------------------------------

    def data(self, part: bytes) -> None:
        if self.is_done:
            return
        try:
            if self._need < 0 and not self._lead and self._is_whole(part):
                self._waits_since = 0.0
                self.message(part[LEAD_BYTES:], None)
                return
            self._waits_since = self.machine.now
            while part and not self.is_done:
                part = self._taken(part)
        except SerinusError as error:
            self.fail(error)
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            self.broke()

    def _is_whole(self, part: bytes) -> bool:
        size = len(part) - LEAD_BYTES
        return 0 <= size < large.LEAST_BYTES and part[0] == 0 and int.from_bytes(part[1:LEAD_BYTES], "big") == size

    def _taken(self, part: bytes) -> bytes:
        """Takes what belongs to one message; answers what is left. Raises SerinusErrors."""
        if self._need < 0:
            lead = self._lead + part[: LEAD_BYTES - len(self._lead)]
            part = part[len(lead) - len(self._lead) :]
            self._lead = lead
            if len(lead) == LEAD_BYTES:
                self._begin(lead[0], int.from_bytes(lead[1:], "big"), len(part))
            return part
        mine = part[: self._need - self._size]
        self._size += len(mine)
        self._hold()
        if self._large is not None:
            self._large.feed(mine)
        else:
            self._data += mine
        if self._size == self._need:
            self._whole()
        return part[len(mine) :]

    def _begin(self, flag: int, size: int, here: int) -> None:
        """A message of `size` bytes begins, of which `here` have come."""
        limit = self.door.max_message_bytes
        if size > limit:
            raise TooLarge(f"Received message larger than max ({size} vs. {limit})")
        if flag > 1 or (flag and self.spoken.encoding == b"identity"):
            raise Malformed("a message is compressed, and the call does not say how")
        self._compressed = bool(flag)
        self._need, self._size = size, 0
        if size > SMALL_BYTES:
            self._held = Held(self.door.bodies)
        if size >= large.LEAST_BYTES and self.is_tensors and not flag:
            self._large = Large(size, self._place)
        self.machine.grant(self.stream, size - here - self.stream.in_window)
        if not size:
            self._whole()

    def _place(self, head: Message, size: int) -> memoryview:
        """Memory for a large request's tensors. Raises SerinusErrors."""
        return self.door.memory(self.spoken, head, size)

    def _hold(self) -> None:
        if self._held is not None:
            self._held.grow(self._size)

    def _whole(self) -> None:
        held, self._held = self._held, None
        found, self._large = self._large, None
        data, self._data = bytes(self._data), bytearray()
        self._lead, self._need, self._waits_since = b"", -1, 0.0
        if found is not None:
            self.message(found, held)
            return
        try:
            if self._compressed:
                data = encodings.inflate(data, self.spoken.encoding, self.door.max_message_bytes)
            self.message(data, held)
        except BaseException:
            if held is not None:
                held.release()
            raise

    def room(self) -> memoryview | None:
        return self._large.room() if self._large is not None and not self.is_done else None

    def filled(self, size: int) -> None:
        assert self._large is not None
        self._waits_since = self.machine.now
        self._size += size
        try:
            self._hold()
            self._large.filled(size)
            if self._size == self._need:
                self._whole()
        except SerinusError as error:
            self.fail(error)
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            self.broke()

    def ended(self) -> None:
        if not self.is_done and (self._lead or self._need >= 0):
            self.fail(Malformed("the call ends in the middle of a message"))
        self._waits_since = 0.0

    def left(self) -> None:
        if not self.is_done:
            self.is_done = True
            self.drop()
            self._done()

    def beat(self, now: float) -> None:
        timeout_s = self.spoken.timeout_s
        if self.is_done or not self._waits_since:
            return
        if timeout_s is not None and now - self.opened_at > timeout_s:
            self.expired()
        elif now - self._waits_since > MESSAGE_IDLE_S and self.is_late:
            self.fail(DeadlineExceeded("the request's message did not come in time"))

    @property
    def is_late(self) -> bool:
        """Whether a message must come now."""
        return True

    def expired(self) -> None:
        """Its deadline has passed."""
        self.fail(DeadlineExceeded())

    # -- what goes --------------------------------------------------------------------------------------------------

    def answer(self, parts: Sequence[Part], trailers: bytes = b"") -> None:
        """The one message of the answer, in pieces, and the status OK. trailers: further header fields."""
        if not self.is_done:
            self.is_done = True
            self._done()
            begin, encoding = statuses.BEGIN, self.spoken.answered_in
            if encoding:
                begin = statuses.BEGINS[encoding]
            self.machine.answer(self.stream, begin, framed(parts, encoding), statuses.OK + trailers)

    def finish(self) -> None:
        """The status OK after what was sent."""
        if not self.is_done:
            self.is_done = True
            self._done()
            self.machine.end(self.stream, statuses.OK if self.stream.has_begun else statuses.BEGIN + statuses.OK)

    def fail(self, error: SerinusError) -> None:
        """The error's status; what is under way ends."""
        if not self.is_done:
            self.is_done = True
            self.drop()
            self._done()
            self.door.refused(error)
            block = statuses.block(error)
            self.machine.end(self.stream, block if self.stream.has_begun else statuses.BEGIN + block)

    def broke(self) -> None:
        """Nobody foresaw the exception that is being handled."""
        _log.exception("a gRPC call failed")
        self.fail(ServerError())

    def _done(self) -> None:
        """Lets go of everything: what a request lies in is used again only when nobody refers to it any more."""
        self._large = None
        self._data = bytearray()
        held, self._held = self._held, None
        if held is not None:
            held.release()
        self.door.running -= 1


def framed(parts: Sequence[Part], encoding: bytes = b"") -> list[Part]:
    """A message as it lies in DATA frames; a small one in one piece. encoding: packed so where that is worth it."""
    size = 0
    for part in parts:
        size += len(part)
    if encoding and encodings.LEAST_BYTES <= size <= MOST_PACKED_BYTES:
        packed = b"".join(encodings.packed(parts, encoding))
        if len(packed) < size:
            return [b"\1" + len(packed).to_bytes(LEAD_BYTES - 1, "big") + packed]
    lead = size.to_bytes(LEAD_BYTES, "big")
    return [lead, *parts] if size > JOIN_BYTES else [b"".join((lead, *parts))]
