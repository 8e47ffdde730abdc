"""Request heads: parsed strictly by llhttp, and remembered byte for byte.

A client that keeps its connection sends the same head again and again, so what was found in one (headers, route, who
may call what) is kept under its very bytes. A head that a proxy or a tracer makes anew each time is parsed anew.
"""

from __future__ import annotations

from typing import Any

import httptools

from inference.errors import Malformed, TooLarge

MAX_HEAD_BYTES = 32 << 10
MAX_KEPT = 2048
KEPT_HEAD_BYTES = 4096
# Two of one of these would let two readers of the request understand two things.
_ONCE = frozenset({
    b"authorization", b"content-encoding", b"content-length", b"content-type", b"host",
    b"inference-header-content-length", b"sec-websocket-key", b"transfer-encoding", b"x-api-key",
})  # fmt: skip
# Other values each time: not worth keeping.
_CHANGING = frozenset({
    b"x-request-id", b"traceparent", b"tracestate", b"sec-websocket-key", b"x-correlation-id",
})  # fmt: skip


class Head:
    """One request's head. length: of its body in bytes, -1 when it comes in chunks. `memo` belongs to the application,
    which may keep there what it found out about exactly these bytes.
    """

    __slots__ = (
        "expects",
        "headers",
        "is_http11",
        "is_websocket",
        "keeps",
        "length",
        "memo",
        "method",
        "path",
        "query",
    )

    def __init__(self, method: str, target: bytes, headers: dict[bytes, bytes], *, is_http11: bool) -> None:
        path, _, query = target.partition(b"?")
        self.method = method
        self.path = path.decode("latin-1")
        self.query = query.decode("latin-1")
        self.headers = headers
        self.is_http11 = is_http11
        self.length = _length(headers, is_http11=is_http11)
        connection = headers.get(b"connection", b"").lower()
        self.keeps = b"close" not in connection if is_http11 else b"keep-alive" in connection
        self.expects = is_http11 and headers.get(b"expect", b"").lower() == b"100-continue"
        self.is_websocket = b"upgrade" in connection and headers.get(b"upgrade", b"").lower() == b"websocket"
        self.memo: Any = None

    @property
    def json_bytes(self) -> int:
        """How far into the body its binary tensors begin, as far as the head says so; 0 where it does not."""
        given = self.headers.get(b"inference-header-content-length", b"")
        return int(given) if given.isdigit() and len(given) <= 12 else 0


class _Parsed:
    def __init__(self) -> None:
        self.url = b""
        self.headers: dict[bytes, bytes] = {}
        self.is_complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in self.headers:
            if name in _ONCE:
                raise Malformed(f"the header '{name.decode('latin-1')}' is there twice")
            if name == b"tracestate":  # W3C lets it be spread over several
                value = self.headers[name] + b"," + value
        self.headers[name] = value

    def on_headers_complete(self) -> None:
        self.is_complete = True


def parse(data: bytes) -> Head:
    """The head in `data`, which ends with its empty line. Raises Malformed."""
    found = _Parsed()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except Malformed:
        raise
    except httptools.HttpParserError as error:
        cause = error.__context__
        if isinstance(cause, Malformed):
            raise cause from None
        raise Malformed("the request's head is no HTTP/1.1") from None
    if not found.is_complete:
        raise Malformed("the request's head is not complete")
    version = parser.get_http_version()
    if version not in {"1.0", "1.1"}:
        raise Malformed("only HTTP/1.1 and HTTP/1.0 are spoken here")
    if version == "1.1" and b"host" not in found.headers:
        raise Malformed("an HTTP/1.1 request names its host")
    method = parser.get_method().decode("latin-1")
    return Head(method, found.url, found.headers, is_http11=version == "1.1")


def _length(headers: dict[bytes, bytes], *, is_http11: bool) -> int:
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        if coding.lower() != b"chunked" or b"content-length" in headers or not is_http11:
            raise Malformed("a body's length is said by Content-Length or by 'Transfer-Encoding: chunked'")
        return -1
    text = headers.get(b"content-length", b"0")
    if not text.isdigit() or len(text) > 18:
        raise Malformed("Content-Length must be a whole number")
    return int(text)


class Heads:
    """Heads of this process by their bytes. Bounded: when it is full it starts anew."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Head] = {}

    def get(self, data: bytes) -> Head:
        """Raises Malformed, or TooLarge for more than MAX_HEAD_BYTES."""
        found = self._kept.get(data)
        return found if found is not None else self._parsed(data)

    def _parsed(self, data: bytes) -> Head:
        if len(data) > MAX_HEAD_BYTES:
            raise TooLarge(f"The request's headers are larger than {MAX_HEAD_BYTES} bytes")
        head = parse(data)
        if len(data) <= KEPT_HEAD_BYTES and not _CHANGING & head.headers.keys():
            if len(self._kept) >= MAX_KEPT:
                self._kept.clear()
            self._kept[data] = head
        return head
