"""Header blocks: read by the library `hpack` and checked (RFC 7541; RFC 9113, section 8.2), written without any state.

A client sends nearly the same block with each call. What a block means depends on its bytes and on the dynamic table
alone, so it is remembered by its bytes as long as that table stays as it is: a block that changes it is not remembered,
and forgets all others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from hpack import Decoder, HPACKError, OversizedHeaderListError

from inference.gateway.http2.frames import Code, ConnectionFault, StreamFault

MAX_BLOCK_BYTES = 32 << 10
MAX_LIST_BYTES = 64 << 10
TOLD_LIST_BYTES = 16 << 10
MAX_KEPT = 64
KEPT_BYTES = 2048
_ENTRY_BYTES = 32
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE = re.compile(rb"[\0\r\n]")
_PSEUDO = {b":method", b":path", b":scheme", b":authority"}
_OF_A_CONNECTION = {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}

Field = tuple[bytes, bytes]


class Head:
    """What a stream begins with. fields: without the pseudo ones, in their order. size: as RFC 9113 counts it. `memo`
    belongs to the application, which may keep there what it found out about exactly this block.
    """

    __slots__ = ("fields", "memo", "method", "path", "size")

    def __init__(self, method: bytes, path: bytes, fields: list[Field], size: int) -> None:
        self.method = method
        self.path = path
        self.fields = fields
        self.size = size
        self.memo: Any = None


class HeadReader:
    """One connection's: it holds the peer's dynamic table."""

    __slots__ = ("_decoder", "_kept")

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=MAX_LIST_BYTES)
        self._kept: dict[bytes, Head] = {}

    def head(self, block: bytes) -> Head:
        """Raises ConnectionFault for a block that leaves the table unknown, StreamFault for one that is no request's."""
        found = self._kept.get(block)
        if found is not None:
            return found
        fields, has_changed = self._decode(block)
        if has_changed:
            self._kept.clear()
        head = checked(fields)
        if not has_changed and len(block) <= KEPT_BYTES:
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[block] = head
        return head

    def trailers(self, block: bytes) -> None:
        """Reads them for the table's sake. Raises as `head`."""
        fields, has_changed = self._decode(block)
        if has_changed:
            self._kept.clear()
        if any(name.startswith(b":") for name, _ in fields):
            raise StreamFault(Code.PROTOCOL_ERROR, "trailers have no pseudo headers")

    def _decode(self, block: bytes) -> tuple[list[Field], bool]:
        """The fields, and whether the table is another one now."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        # an entry is a tuple made when it is added: the newest one is the same object only where none was added since
        before = entries[0] if entries else None, len(entries), table.maxsize
        try:
            found = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError as error:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "a header list is too large") from error
        except (HPACKError, IndexError, ValueError) as error:
            raise ConnectionFault(Code.COMPRESSION_ERROR, "a header block cannot be read") from error
        after = entries[0] if entries else None, len(entries), table.maxsize
        return found, before[0] is not after[0] or before[1:] != after[1:]


def checked(fields: Sequence[Field]) -> Head:
    """The head of a request. Raises StreamFault."""
    pseudo: dict[bytes, bytes] = {}
    others: list[Field] = []
    size = 0
    for name, value in fields:
        size += len(name) + len(value) + _ENTRY_BYTES
        if name[:1] == b":":
            if name not in _PSEUDO or name in pseudo or others:
                raise StreamFault(Code.PROTOCOL_ERROR, "a pseudo header is unknown, there twice or too late")
            pseudo[name] = value
        else:
            _check(name, value)
            others.append((name, value.strip(b" \t")))
    if any(_BAD_VALUE.search(value) for value in pseudo.values()):
        raise StreamFault(Code.PROTOCOL_ERROR, "a pseudo header has a value that is none")
    if not (b":method" in pseudo and b":scheme" in pseudo and pseudo.get(b":path")):
        raise StreamFault(Code.PROTOCOL_ERROR, "a request has a method, a scheme and a path")
    return Head(pseudo[b":method"], pseudo[b":path"], others, size)


def _check(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name) or _BAD_VALUE.search(value):
        raise StreamFault(Code.PROTOCOL_ERROR, "a header's name or value is none")
    if name in _OF_A_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
        raise StreamFault(Code.PROTOCOL_ERROR, "HTTP/2 has no headers of a connection")


# -- writing: static names and literals that no table keeps, so a block can be made once for all connections -----------

STATUS_200 = b"\x88"


def field(name: bytes, value: bytes) -> bytes:
    """A literal without indexing."""
    return b"\x00" + _number(len(name)) + name + _number(len(value)) + value


def status(number: int) -> bytes:
    """The pseudo header `:status`."""
    return STATUS_200 if number == 200 else b"\x08\x03%d" % number


def _number(value: int) -> bytes:
    if value < 127:
        return bytes((value,))
    found = bytearray((127,))
    value -= 127
    while value > 127:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
