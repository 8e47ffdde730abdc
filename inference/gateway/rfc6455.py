"""The bytes of RFC 6455 as a server sees them, without any I/O: frames in, whole messages out.

The laws: cutting the bytes anywhere changes nothing; no message is longer than its kind allows, and a longer one is
refused by its announced length, before its bytes are kept; what breaks the protocol ends it with a close code. What is
kept of a message that is not whole yet is its bytes and nothing beside them, in however many pieces they come. A large
binary message is put together where its reader wants it, and may be received there.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from inference.gateway.payload import Payload
from inference.protocol import memory

try:
    from websockets.speedups import apply_mask
except ImportError:  # built without C
    from websockets.utils import apply_mask

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MAX_CONTROL_BYTES = 125
OK, GOING_AWAY, BROKEN, NO_CODE, NOT_UTF8, POLICY, TOO_LONG, RESTART, TRY_AGAIN = (
    1000, 1001, 1002, 1005, 1007, 1008, 1009, 1012, 1013,
)  # fmt: skip
_SHORT, _LONG = Struct("!BBH"), Struct("!BBQ")
_VIEW_BYTES = 64 << 10
LARGE_BYTES = 256 << 10
FIRST_BYTES = 16 << 10

Message = tuple[int, bytes | memoryview]

Place = Callable[[bytes, int, bool], memoryview | None]
"""(first, size, is_whole) -> memory for a binary message of `size` bytes, or of more if it is not whole; `first` is how
it begins. None asks for more of its beginning, until FIRST_BYTES of it are there.
"""


def anywhere(_first: bytes, size: int, _is_whole: bool) -> memoryview:
    return memory.pool.take(size)


class Violation(Exception):
    """The peer broke the protocol: the connection closes with `code`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def frame_head(opcode: int, size: int) -> bytes:
    """The head of a whole, unmasked frame with `size` bytes."""
    if size < 126:
        return bytes((0x80 | opcode, size))
    if size < 1 << 16:
        return _SHORT.pack(0x80 | opcode, 126, size)
    return _LONG.pack(0x80 | opcode, 127, size)


def close_frame(code: int, reason: str = "") -> bytes:
    text = reason.encode()[: MAX_CONTROL_BYTES - 2].decode(errors="ignore").encode()
    return frame_head(CLOSE, 2 + len(text)) + code.to_bytes(2, "big") + text


def close_code(payload: bytes) -> int:
    """What a close frame says; NO_CODE when it says nothing. Raises Violation."""
    if not payload:
        return NO_CODE
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2 or not (code in _CODES or 3000 <= code < 5000):
        raise Violation(BROKEN, "a close frame without a code that may be sent")
    _text(payload[2:])
    return code


_CODES = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015)})


def _text(data: bytes) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise Violation(NOT_UTF8, "a text is not UTF-8") from error


class Parser:
    """What one client sends. place: where its large binary messages belong."""

    __slots__ = ("_at", "_data", "_kind", "_max_binary", "_max_text", "_message", "_place", "payload")

    def __init__(self, *, max_text: int, max_binary: int, place: Place = anywhere) -> None:
        self._max_text = max_text
        self._max_binary = max_binary
        self._place = place
        self._data: bytes | bytearray = b""
        self._at = 0
        self._kind = 0  # of the message whose fragments are coming; 0: none
        self._message: bytearray | None = None
        self.payload: Payload | None = None  # a large message that is coming

    @property
    def is_between(self) -> bool:
        """Whether nothing is kept: no part of a frame, no fragments."""
        return not self._data and not self._kind and self.payload is None

    @property
    def kept_bytes(self) -> int:
        """What is here of messages that were not given out."""
        payload, message = self.payload, self._message
        return len(self._data) + (payload.filled if payload is not None else len(message) if message is not None else 0)

    @property
    def room(self) -> memoryview | None:
        """Where what the client sends next belongs, which is not to be fed but to be told of (`came`); None: to `feed`."""
        payload = self.payload
        return payload.room if payload is not None and payload.left and not self._data else None

    def came(self, size: int) -> None:
        """So many bytes lie in `room`."""
        assert self.payload is not None
        self.payload.came(size)

    def feed(self, data: bytes) -> None:
        """Takes what the client sent."""
        if not self._data:
            self._data = data
            return
        if isinstance(self._data, bytes):
            self._data = bytearray(self._data)
        if self._at:
            del self._data[: self._at]
            self._at = 0
        self._data += data

    def forget(self) -> None:
        """Nothing that was kept is of use any more."""
        self._data, self._at, self._kind, self._message, self.payload = b"", 0, 0, None, None

    def next(self) -> Message | None:
        """The next message or control frame, None until more comes. Raises Violation; after it there is no next."""
        while True:
            found: Message | None
            large = self.payload
            if large is not None and (large.left or large.is_last):
                found = self._filled(large)
                if found is None and large.left:
                    return None
            else:
                frame = self._frame()
                if frame is None:
                    return None
                opcode, is_last, payload = frame
                if payload is None:  # it goes to a large message
                    continue
                if opcode & 8 or (is_last and opcode):
                    if opcode == TEXT:
                        _text(payload)
                    return opcode, payload
                found = self._fragment(opcode, payload, is_last=is_last)
            if found is not None:
                return found

    def _fragment(self, opcode: int, payload: bytes, *, is_last: bool) -> Message | None:
        if opcode:
            self._kind, self._message = opcode, bytearray(payload)
            return None
        assert self._message is not None
        self._message += payload
        if not is_last:
            return None
        kind, message = self._kind, bytes(self._message)
        self._kind, self._message = 0, None
        if kind == TEXT:
            _text(message)
        return kind, message

    def _filled(self, payload: Payload) -> Message | None:
        """The large message, if its last frame is whole with what is here of it."""
        if self._data and payload.left:
            self._pass(self._at + payload.take(self._data, self._at))
        if payload.left or not payload.is_last:
            return None
        self._kind, self.payload = 0, None
        return BINARY, payload.whole()

    def _pass(self, end: int) -> None:
        self._at = end
        if end == len(self._data):
            self._data, self._at = b"", 0

    def _frame(self) -> tuple[int, bool, bytes | None] | None:
        data, at = self._data, self._at
        have = len(data) - at
        if have < 2:
            self._keep()
            return None
        first, second = data[at], data[at + 1]
        opcode, size = first & 15, second & 127
        self._check(first, second)
        start = at + 6
        if size >= 126:
            wide = 2 if size == 126 else 8
            if have < 2 + wide:
                self._keep()
                return None
            size = int.from_bytes(data[at + 2 : at + 2 + wide], "big")
            if size < (126 if wide == 2 else 1 << 16):
                raise Violation(BROKEN, "a frame's length is not in its shortest form")
            start += wide
        if not opcode & 8:
            self._check_size(opcode, size)
            if (size >= LARGE_BYTES or self._kind) and self._is_large(opcode, size):
                return self._enter(opcode, size, start, is_last=first >= 0x80)
        end = start + size
        if len(data) < end:
            self._keep()
            return None
        mask = data[start - 4 : start]
        if size < _VIEW_BYTES:
            payload = apply_mask(data[start:end], mask)
        else:
            with memoryview(data) as view, view[start:end] as masked:
                payload = apply_mask(masked, mask)
        self._at = end
        if end == len(data):
            self._data, self._at = b"", 0
        return opcode, first >= 0x80, payload

    # -- large binary messages --------------------------------------------------------------------------------------

    def _is_large(self, opcode: int, size: int) -> bool:
        return (opcode or self._kind) == BINARY and (
            self.payload is not None or size + len(self._message or b"") >= LARGE_BYTES
        )

    def _enter(self, opcode: int, size: int, start: int, *, is_last: bool) -> tuple[int, bool, None] | None:
        """Begins a frame of a large message, and the message with its first one; None until enough of it is here."""
        if len(self._data) < start:
            self._keep()
            return None
        mask = bytes(self._data[start - 4 : start])
        payload = self.payload
        if payload is None:
            begun = self._message or b""
            more = min(size, max(0, FIRST_BYTES - len(begun)))
            first = bytes(begun[:FIRST_BYTES]) + apply_mask(self._data[start : start + more], mask)
            view = self._place(first, len(begun) + size, is_last)
            if view is None:
                self._keep()
                return None
            payload = self.payload = Payload(view, begun, most_bytes=self._max_binary)
            self._kind, self._message = BINARY, None
        payload.begin(size, mask, is_last=is_last)
        self._pass(start)
        return opcode, is_last, None

    def _keep(self) -> tuple[int, bool, None] | None:
        # the part that is left would keep alive what was read before it
        if self._at and isinstance(self._data, bytes):
            self._data, self._at = self._data[self._at :], 0
        return None

    def _check(self, first: int, second: int) -> None:
        opcode = first & 15
        if first & 0x70:
            raise Violation(BROKEN, "a frame has bits of an extension that was not agreed on")
        if not second & 0x80:
            raise Violation(BROKEN, "a client's frame is not masked")
        if opcode & 8:
            if opcode > PONG or not first & 0x80 or second & 127 > MAX_CONTROL_BYTES:
                raise Violation(BROKEN, "a control frame is not known, in fragments or too long")
        elif opcode > BINARY:
            raise Violation(BROKEN, "a frame of an unknown kind")
        elif bool(opcode) == bool(self._kind):
            raise Violation(BROKEN, "a fragment is not where it belongs")

    def _check_size(self, opcode: int, size: int) -> None:
        kind = opcode or self._kind
        limit = self._max_text if kind == TEXT else self._max_binary
        begun = self.payload.filled if self.payload is not None else len(self._message or b"")
        if size + begun > limit:
            raise Violation(TOO_LONG, f"a {'text' if kind == TEXT else 'binary'} frame may have {limit} bytes")
