"""gzip and deflate, as HTTP names them: bodies are inflated within the body limit, answers deflated when asked to."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from inference.errors import Malformed, TooLarge, UnsupportedEncoding
from inference.gateway.web import Headers, Part

LEAST_BYTES = 1024
MOST_BYTES = (
    64 << 10
)  # a MiB takes 50 ms and more, in which every other request waits; and most clients ask for it unasked
LEVEL = 1
STEP_BYTES = 256 << 10
_GZIP, _ZLIB = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
_WBITS = {b"gzip": _GZIP, b"deflate": _ZLIB}


def inflate(data: Part, encoding: bytes, limit_bytes: int) -> bytes:
    """The body as it was before it was compressed. What comes out is held once, until all of it is known to fit.

    Raises UnsupportedEncoding, Malformed, or TooLarge as soon as more than `limit_bytes` come out.
    """
    wbits = _WBITS.get(encoding)
    if wbits is None:
        raise UnsupportedEncoding
    machine = zlib.decompressobj(wbits)
    found = bytearray()
    try:
        for part in _inflated(machine, memoryview(data)):
            found += part
            if len(found) > limit_bytes:
                raise TooLarge(f"The request body is larger than the {limit_bytes} bytes that this server accepts")
    except zlib.error as error:
        raise Malformed(f"the request's body is no {encoding.decode()}") from error
    if not machine.eof or machine.unused_data:
        raise Malformed(f"the request's body is not one whole {encoding.decode()} stream")
    return bytes(found)


def _inflated(machine: Any, data: memoryview) -> Iterator[bytes]:
    """What comes out, at most STEP_BYTES at once. It stops behind the stream's end, with what follows in `unused_data`."""
    for at in range(0, len(data), STEP_BYTES):
        rest: Part = data[at : at + STEP_BYTES]
        is_full = False
        while rest or is_full:
            part = machine.decompress(rest, STEP_BYTES)
            yield part
            rest, is_full = machine.unconsumed_tail, len(part) == STEP_BYTES and not machine.eof
        if machine.unused_data:
            return


def accepted(given: bytes) -> bytes:
    """The best encoding that an Accept-Encoding header allows: b"gzip", b"deflate", or b"" for none."""
    allowed = set()
    for item in given.lower().split(b","):
        name, *parameters = (part.strip() for part in item.split(b";"))
        refused = any(part.startswith(b"q=") and not part[2:].strip(b"0.") for part in parameters)
        if name in _WBITS and not refused:
            allowed.add(name)
    return next((name for name in (b"gzip", b"deflate") if name in allowed), b"")


def deflated(headers: Headers, parts: Sequence[Part], encoding: bytes) -> tuple[Headers, Sequence[Part]]:
    """Headers and body, compressed when the client wants it and it is worth it."""
    if not encoding or not LEAST_BYTES <= sum(len(part) for part in parts) <= MOST_BYTES:
        return headers, parts
    return [*headers, (b"content-encoding", encoding), (b"vary", b"accept-encoding")], packed(parts, encoding)


def packed(parts: Sequence[Part], encoding: bytes) -> list[bytes]:
    """The parts as one compressed stream."""
    machine = zlib.compressobj(LEVEL, zlib.DEFLATED, _WBITS[encoding])
    found = [machine.compress(part) for part in parts]
    found.append(machine.flush())
    return found
