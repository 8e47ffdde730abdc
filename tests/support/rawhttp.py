"""Requests that no proper client would send: bytes on a socket."""

from __future__ import annotations

import socket
from collections.abc import Iterable


class Answer:
    """Status, headers (small letters) and body of an answer that came in plain HTTP/1.1; status 0: there was none."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin1").split("\r\n")
        self.status_code = int(lines[0].split()[1]) if lines[0] else 0
        pairs = (line.partition(":") for line in lines[1:])
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        if self.headers.get("transfer-encoding") != "chunked" and "content-length" in self.headers:
            self.body = self.body[: int(self.headers["content-length"])]

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    def json(self) -> dict[str, object]:
        import json

        found: dict[str, object] = json.loads(self.body)
        return found


def exchange(port: int, parts: Iterable[bytes], *, end: bool = False, timeout_s: float = 5.0) -> Answer:
    """Sends `parts` until the server closes or has answered; `end` closes our direction afterwards."""
    found = b""
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(timeout_s)
        try:
            for part in parts:
                peer.sendall(part)
            if end:
                peer.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it closed before it had read all, as it may; what it said is still there to be read
        try:
            while not _is_whole(found) and (part := peer.recv(65536)):
                found += part
        except OSError:
            pass
    return Answer(found)


def _is_whole(found: bytes) -> bool:
    head, mark, body = found.partition(b"\r\n\r\n")
    if not mark:
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.split(b":")[1])
    return False
