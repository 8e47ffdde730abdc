"""A receiver of webhooks: a real HTTP server that checks signatures as a receiver's author would, and misbehaves on wish."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # of five, the default, the sixth caller at once may be refused


@dataclass
class Got:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    def is_signed(self, secret: str, *, now: float | None = None, within_s: float = 300) -> bool:
        """As docs/webhooks.md tells receivers to check."""
        parts = dict(part.split("=", 1) for part in self.headers["x-serinus-signature"].split(","))
        wanted = hmac.new(secret.encode(), parts["t"].encode() + b"." + self.body, hashlib.sha256).hexdigest()
        fresh = abs((time.time() if now is None else now) - int(parts["t"])) <= within_s
        return fresh and hmac.compare_digest(wanted, parts["v1"])


Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Receiver:
    """answer: what it does with each request; the default is a 200."""

    url: str = ""
    got: list[Got] = field(default_factory=list)
    answer: Answer = field(default=lambda handler: plain(handler, 200, b"thank you"))


def plain(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def dripping(handler: BaseHTTPRequestHandler) -> None:
    """A head that never ends: a byte at a time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    for _ in range(200):
        handler.wfile.write(b"a")
        handler.wfile.flush()
        time.sleep(0.1)


def endless(handler: BaseHTTPRequestHandler) -> None:
    """A body that never ends."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100_000):
        handler.wfile.write(b"x" * 65_536)


@contextmanager
def receiver() -> Iterator[Receiver]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found.got.append(Got(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            try:
                found.answer(self)
            except (ConnectionError, OSError):
                return

        def log_message(self, *_: object) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
