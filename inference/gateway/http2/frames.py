"""Frames as bytes, and the two kinds of fault that a peer can commit (RFC 9113, sections 4 to 7)."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
LEAST_MAX_FRAME, MOST_MAX_FRAME = 1 << 14, (1 << 24) - 1
MOST_WINDOW = (1 << 31) - 1
DEFAULT_WINDOW = 65_535
NUMBER = MOST_WINDOW  # the mask of a stream's number: its highest bit means nothing

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

Part = bytes | memoryview

_head = Struct(">HBBBL")
_setting = Struct(">HL")
read_head = _head.unpack_from
read_settings = _setting.iter_unpack


class Code(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Setting(IntEnum):
    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Fault(Exception):
    """The peer broke the protocol."""

    def __init__(self, code: Code, words: str) -> None:
        super().__init__(words)
        self.code = code


class ConnectionFault(Fault):
    """It ends the connection."""


class StreamFault(Fault):
    """It ends one stream."""


def head(size: int, kind: int, flags: int, number: int) -> bytes:
    """The 9 bytes before a payload of `size` bytes."""
    return _head.pack(size >> 8, size & 0xFF, kind, flags, number)


def settings(values: dict[Setting, int]) -> bytes:
    payload = b"".join([_setting.pack(name, value) for name, value in values.items()])
    return head(len(payload), SETTINGS, 0, 0) + payload


SETTINGS_ACK = head(0, SETTINGS, ACK, 0)


def ping(data: bytes, *, is_ack: bool) -> bytes:
    return head(8, PING, ACK if is_ack else 0, 0) + data


def window_update(number: int, more: int) -> bytes:
    return head(4, WINDOW_UPDATE, 0, number) + more.to_bytes(4, "big")


def rst_stream(number: int, code: Code) -> bytes:
    return head(4, RST_STREAM, 0, number) + code.to_bytes(4, "big")


def goaway(last: int, code: Code, words: str = "") -> bytes:
    text = words.encode()[:256]
    return head(8 + len(text), GOAWAY, 0, 0) + last.to_bytes(4, "big") + code.to_bytes(4, "big") + text


def headers(number: int, block: bytes, *, ends: bool, max_frame: int) -> bytes:
    """A header block: one frame, and CONTINUATIONs where it does not fit in one."""
    flags = END_STREAM if ends else 0
    if len(block) <= max_frame:
        return head(len(block), HEADERS, flags | END_HEADERS, number) + block
    found = [head(max_frame, HEADERS, flags, number), block[:max_frame]]
    for at in range(max_frame, len(block), max_frame):
        part = block[at : at + max_frame]
        is_last = at + max_frame >= len(block)
        found += (head(len(part), CONTINUATION, END_HEADERS if is_last else 0, number), part)
    return b"".join(found)
