"""The bytes of RFC 6455 as a server sees them, without any I/O: frames in, whole messages out.

The laws: cutting the bytes anywhere changes nothing; no message is longer than its kind allows, and a longer one is
refused by its announced length, before its bytes are kept; what breaks the protocol ends it with a close code. What is
kept of a message that is not whole yet is its bytes and nothing beside them, in however many pieces they come.
"""

from __future__ import annotations

from struct import Struct

try:
    from websockets.speedups import apply_mask
except ImportError:  # built without C
    from websockets.utils import apply_mask

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MAX_CONTROL_BYTES = 125
OK, GOING_AWAY, BROKEN, NO_CODE, NOT_UTF8, POLICY, TOO_LONG, RESTART = 1000, 1001, 1002, 1005, 1007, 1008, 1009, 1012
_SHORT, _LONG = Struct("!BBH"), Struct("!BBQ")
_VIEW_BYTES = 64 << 10

Message = tuple[int, bytes]


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
    """What one client sends."""

    __slots__ = ("_at", "_data", "_kind", "_max_binary", "_max_text", "_message")

    def __init__(self, *, max_text: int, max_binary: int) -> None:
        self._max_text = max_text
        self._max_binary = max_binary
        self._data: bytes | bytearray = b""
        self._at = 0
        self._kind = 0  # of the message whose fragments are coming; 0: none
        self._message: bytearray | None = None

    @property
    def is_between(self) -> bool:
        """Whether nothing is kept: no part of a frame, no fragments."""
        return not self._data and not self._kind

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

    def next(self) -> Message | None:
        """The next message or control frame, None until more comes. Raises Violation; after it there is no next."""
        while True:
            found = self._frame()
            if found is None:
                return None
            opcode, is_last, payload = found
            if opcode & 8 or (is_last and opcode):
                if opcode == TEXT:
                    _text(payload)
                return opcode, payload
            message = self._fragment(opcode, payload, is_last=is_last)
            if message is not None:
                return message

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

    def _frame(self) -> tuple[int, bool, bytes] | None:
        data, at = self._data, self._at
        have = len(data) - at
        if have < 2:
            return self._keep()
        first, second = data[at], data[at + 1]
        opcode, size = first & 15, second & 127
        self._check(first, second)
        start = at + 6
        if size >= 126:
            wide = 2 if size == 126 else 8
            if have < 2 + wide:
                return self._keep()
            size = int.from_bytes(data[at + 2 : at + 2 + wide], "big")
            if size < (126 if wide == 2 else 1 << 16):
                raise Violation(BROKEN, "a frame's length is not in its shortest form")
            start += wide
        if not opcode & 8:
            self._check_size(opcode, size)
        end = start + size
        if len(data) < end:
            return self._keep()
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

    def _keep(self) -> tuple[int, bool, bytes] | None:
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
        if size + (len(self._message) if self._message is not None else 0) > limit:
            raise Violation(TOO_LONG, f"a {'text' if kind == TEXT else 'binary'} frame may have {limit} bytes")
