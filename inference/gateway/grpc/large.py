"""A large ModelInferRequest while it comes: its raw tensors are received where they will be read.

They lie there one after the other, as a replica takes them from a lent block; protobuf reads the rest. What is wrong
with a message is said when its tensors begin, or at its end.
"""

from __future__ import annotations

from collections.abc import Callable

from inference.errors import Malformed
from inference.gateway.grpc import wire
from inference.gateway.grpc.wire import Message, Raw
from inference.protocol import memory

LEAST_BYTES = 256 << 10
MAX_LEAD_BYTES = 20  # tag and length are varints of at most 10 bytes each
_FIXED = {1: 8, 5: 4}
_VARINT, _BYTES = 0, 2

Place = Callable[[Message, int], memoryview]


class Large:
    """size: of the message in bytes. place: called with what came before the first raw tensor, and how many bytes all
    of them take at most; answers where they are to lie. It may raise SerinusErrors.
    """

    __slots__ = (
        "_field",
        "_fields",
        "_filled",
        "_memory",
        "_part",
        "_place",
        "_raw",
        "_rest",
        "_tensor",
        "left",
        "size",
    )

    def __init__(self, size: int, place: Place) -> None:
        self.left = self.size = size
        self._place = place
        self._rest = bytearray()
        self._part = b""  # of a field's tag and length
        self._field = self._tensor = 0  # bytes of the field, or tensor, that are still to come
        self._fields = 0
        self._memory: memoryview | None = None
        self._filled = 0
        self._raw: list[memoryview] = []

    def room(self) -> memoryview | None:
        """Where the rest of the tensor belongs that is on its way; None: no tensor is."""
        if not self._tensor:
            return None
        assert self._memory is not None
        return self._memory[self._filled : self._filled + self._tensor]

    def filled(self, size: int) -> None:
        """So many bytes of `room` have come."""
        assert self._memory is not None
        if self._filled < memory.HUGE_BYTES <= self._filled + size:
            memory.in_huge_pages(self._memory)
        self._filled += size
        self._tensor -= size
        self.left -= size

    def feed(self, data: bytes) -> None:
        """The next bytes of the message, no more than `left`. Raises Malformed, and what `place` raises."""
        at = 0
        while at < len(data):
            if self._tensor:
                size = min(self._tensor, len(data) - at)
                room = self.room()
                assert room is not None
                room[:size] = memoryview(data)[at : at + size]
                self.filled(size)
                at += size
            elif self._field:
                size = min(self._field, len(data) - at)
                self._rest += data[at : at + size]
                self._field -= size
                self.left -= size
                at += size
            else:
                at += self._begin(data[at : at + MAX_LEAD_BYTES])

    def _begin(self, data: bytes) -> int:
        """Reads a field's tag and length; answers how many bytes of `data` belong to them."""
        lead = self._part + data
        tag, at = wire.varint(lead, 0)
        size = 0
        if tag >= 0 and tag & 7 in {_BYTES, _VARINT}:
            size, at = wire.varint(lead, at)
        if tag < 0 or size < 0:
            if len(lead) >= MAX_LEAD_BYTES or len(data) == self.left:
                raise _no_message()
            self._part = lead
            self.left -= len(data)
            return len(data)
        self._fields += 1
        if self._fields > wire.MAX_FIELDS:
            raise wire.too_many_fields()
        used = at - len(self._part)
        self.left -= used
        self._part = b""
        if tag == wire.RAW_INPUT_TAG:
            self._begin_tensor(size)
            return used
        self._rest += lead[:at]
        how = tag & 7
        if how != _VARINT:
            self._field = size if how == _BYTES else _FIXED.get(how, -1)
            if not 0 <= self._field <= self.left:
                raise _no_message()
        return used

    def _begin_tensor(self, size: int) -> None:
        if size > self.left:
            raise _no_message()
        if self._memory is None:
            self._memory = self._place(wire.parse(wire.INFER_REQUEST, bytes(self._rest)), self.left)
        self._raw.append(self._memory[self._filled : self._filled + size])
        self._tensor = size

    def read(self) -> tuple[Message, Raw]:
        """The message, once nothing is left of it, and its raw tensors. Raises Malformed."""
        if self._part or self._field or self._tensor:
            raise _no_message()
        return wire.parse(wire.INFER_REQUEST, bytes(self._rest)), self._raw


def _no_message() -> Malformed:
    return Malformed("the request is no ModelInferRequest message")
