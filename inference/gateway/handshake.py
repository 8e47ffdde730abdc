"""The handshake that opens a WebSocket: what the client offers, and the answer to it (RFC 6455, section 4)."""

from __future__ import annotations

import base64
import binascii
import hashlib

from inference.errors import Malformed
from inference.gateway.heads import Head
from inference.gateway.predict import credential_of

PROTOCOL = "serinus.v1"
KEY_PROTOCOL = "serinus.key."
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def answer(head: Head, subprotocol: str | None) -> bytes:
    """The answer that opens a WebSocket. Raises Malformed."""
    key = head.headers.get(b"sec-websocket-key", b"")
    try:
        is_key = len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        is_key = False
    if not is_key or head.headers.get(b"sec-websocket-version") != b"13" or not head.is_http11:
        raise Malformed("the WebSocket handshake is not that of RFC 6455")
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"upgrade: websocket",
        b"connection: Upgrade",
        b"sec-websocket-accept: " + accept,
    ]
    if subprotocol:
        lines.append(b"sec-websocket-protocol: " + subprotocol.encode("latin-1"))
    return b"\r\n".join([*lines, b"", b""])


def subprotocols(head: Head) -> list[str]:
    """What the client offers, in its order."""
    given = head.headers.get(b"sec-websocket-protocol", b"").decode("latin-1")
    return [item.strip() for item in given.split(",") if item.strip()]


def credential(head: Head, offered: list[str]) -> str:
    """The key or token among the subprotocols, else that of the headers, else ""."""
    for protocol in offered:
        if protocol.startswith(KEY_PROTOCOL):
            return protocol[len(KEY_PROTOCOL) :]
    return credential_of(head.headers)
