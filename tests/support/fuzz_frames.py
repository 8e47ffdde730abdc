"""Frames of WebSocket and HTTP/2 as bytes, made and read by hand: what is to be broken must not pass a proper library."""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TEXT, BINARY, CLOSE = 1, 2, 8
HTTP2 = {0: "data", 1: "headers", 3: "reset", 4: "settings", 6: "ping", 7: "goaway", 8: "window"}


# -- WebSocket --------------------------------------------------------------------------------------------------------


def frame(payload: bytes, opcode: int, mask: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        start = bytes([0x80 | opcode, 0x80 | size])
    else:
        start = bytes([0x80 | opcode, 0x80 | 126]) + struct.pack(">H", size)
    return start + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def frames_of(data: bytes) -> list[tuple[int, bytes]]:
    """Opcode and payload of the whole frames in `data`; masked or not, none of them in pieces."""
    found, at = [], 0
    while at + 2 <= len(data):
        size, start = data[at + 1] & 0x7F, at + 2
        extended = {126: 2, 127: 8}.get(size, 0)
        if extended:
            size, start = int.from_bytes(data[start : start + extended], "big"), start + extended
        mask = data[start : start + 4] if data[at + 1] & 0x80 else b""
        start += len(mask)
        if start + size > len(data):
            break
        payload = data[start : start + size]
        if mask:
            payload = bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))
        found.append((data[at] & 0x0F, payload))
        at = start + size
    return found


def messages_in(data: bytes) -> int:
    """How many messages a client sends with these frames, each of which is sound; 0 where one is not."""
    found = frames_of(data)
    again = b"".join(frame(payload, opcode, bytes(4)) for opcode, payload in found)
    if len(again) != len(data) or any(opcode not in {TEXT, BINARY} for opcode, _ in found):
        return 0
    at = 0
    for opcode, payload in found:  # its first two bytes say all that is not the mask or the payload
        if data[at : at + 2] != frame(payload, opcode, bytes(4))[:2] or (opcode == TEXT and not _is_utf8(payload)):
            return 0
        at += len(frame(payload, opcode, bytes(4)))
    return len(found)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def answers_in(raw: bytes) -> int:
    """How many messages the server sent after its handshake."""
    return sum(opcode in {TEXT, BINARY} for opcode, _ in frames_of(raw.partition(b"\r\n\r\n")[2]))


def closes(raw: bytes) -> bool:
    """Whether the server has closed the connection in words."""
    return any(opcode == CLOSE for opcode, _ in frames_of(raw.partition(b"\r\n\r\n")[2]))


# -- HTTP/2 -----------------------------------------------------------------------------------------------------------


def frame2(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(index: int, value: str) -> bytes:
    """A header field whose name is in the static table, without indexing and without Huffman coding (RFC 7541, 6.2.2)."""
    first = bytes([index]) if index < 15 else bytes([15, index - 15])
    return first + bytes([len(value)]) + value.encode()


def kinds_of(raw: bytes) -> list[str]:
    """The kinds of the frames that came; "unknown" for what no server sends."""
    found, at = [], 0
    while at + 9 <= len(raw):
        found.append(HTTP2.get(raw[at + 3], "unknown"))
        at += 9 + int.from_bytes(raw[at : at + 3], "big")
    return found
