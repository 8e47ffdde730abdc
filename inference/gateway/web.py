"""What a handler of the REST door gets and gives: a whole request in, a response or a stream of pieces out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from inference.gateway.heads import Head
from inference.gateway.incoming import Incoming

Headers = list[tuple[bytes, bytes]]
Given = dict[bytes, bytes]
Part = bytes | memoryview

JSON_TYPE = (b"content-type", b"application/json")
SSE_TYPE = (b"content-type", b"text/event-stream; charset=utf-8")
_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(slots=True)
class Request:
    """A request whose body is all there, or comes as `incoming` where it is passed on. name, number: endpoint and
    version of its address; rest: what else the route's pattern caught. `id` is the client's own request id where it
    sent a good one.
    """

    head: Head
    body: Part
    id: str
    what: str = ""
    name: str = ""
    number: int | None = None
    rest: tuple[str, ...] = ()
    incoming: Incoming | None = None

    @property
    def method(self) -> str:
        return self.head.method

    @property
    def headers(self) -> Given:
        return self.head.headers


@dataclass(slots=True)
class Response:
    status: int = 200
    headers: Headers = field(default_factory=list)
    body: Part | Sequence[Part] = b""


@dataclass(slots=True)
class Stream:
    """A response whose body comes in pieces, each sent as it comes; closing the iterator stops whoever makes them."""

    pieces: AsyncIterator[bytes]
    status: int = 200
    headers: Headers = field(default_factory=lambda: [SSE_TYPE])


def status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n".encode()


_LINES = {status: status_line(status) for status in _REASONS}


def head_of(status: int, headers: Headers, size: int | None) -> bytes:
    """A response's head. size: of its body; None for chunks."""
    parts = [_LINES.get(status) or status_line(status)]
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    parts.append(b"transfer-encoding: chunked\r\n\r\n" if size is None else b"content-length: %d\r\n\r\n" % size)
    return b"".join(parts)
