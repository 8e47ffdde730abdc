"""What the head of a call says, found out once for its very bytes: which method, who calls, how long it may take.

Source: "gRPC over HTTP2" (the protocol's own document).
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Any

from inference.errors import InvalidInput, SerinusError, TooLarge, Unsupported
from inference.gateway.grpc import heads, statuses
from inference.gateway.http2.headers import TOLD_LIST_BYTES, Field
from inference.gateway.http2.headers import Head as Http2Head

if TYPE_CHECKING:
    from inference.gateway.grpc.door import Method

Metadata = list[tuple[str, str | bytes]]

_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
# the transport's own, and no metadata
_RESERVED = {b"te", b"content-type", b"user-agent", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"}
_CREDENTIALS = ("authorization", "x-api-key")
_ENCODINGS = {b"identity", b"gzip", b"deflate"}


class Spoken:
    """method: None where no such one is known. head: what its metadata say. timeout_s: until its deadline, None without
    one. encoding: of its messages; answered_in: of the answers that are worth it, b"" for none. refusal: the header block that it is answered with whoever calls; problem: the error. asked: belongs to the
    method's handler.
    """

    __slots__ = ("answered_in", "asked", "encoding", "head", "method", "problem", "refusal", "timeout_s")

    def __init__(self, method: Method | None) -> None:
        self.method = method
        self.head = heads.Head("")
        self.timeout_s: float | None = None
        self.encoding = b"identity"
        self.answered_in = b""
        self.problem: SerinusError | None = None
        self.refusal: bytes | None = None
        self.asked: Any = None


def spoken(given: Http2Head, methods: dict[bytes, Method]) -> Spoken:
    """Never raises: what is wrong with a head stands in the result."""
    found = Spoken(methods.get(given.path))
    fields = dict(given.fields)
    kind = fields.get(b"content-type", b"")
    if given.method != b"POST":
        found.refusal = statuses.plain(405)
    elif not kind.startswith(b"application/grpc") or kind[16:17] not in {b"", b"+", b";"}:
        found.refusal = statuses.plain(415)
    else:
        try:
            _read(found, fields, given)
        except SerinusError as error:
            found.problem = error
    return found


def _read(found: Spoken, fields: dict[bytes, bytes], given: Http2Head) -> None:
    who = [(name, fields[name.encode()].decode("latin-1")) for name in _CREDENTIALS if name.encode() in fields]
    found.head = heads.Head(heads.credential_of(who))  # whoever may not enter is told that, whatever else is wrong
    if given.size > TOLD_LIST_BYTES:
        raise TooLarge(f"The call's metadata are larger than {TOLD_LIST_BYTES} bytes")
    if b"grpc-timeout" in fields:
        found.timeout_s = timeout_s(fields[b"grpc-timeout"])
    found.encoding = fields.get(b"grpc-encoding", b"identity")
    # Every client says that it can unpack; who packs its requests wants packed answers.
    if found.encoding in statuses.BEGINS and found.encoding in _listed(fields.get(b"grpc-accept-encoding", b"")):
        found.answered_in = found.encoding
    found.head = heads.read(metadata(given.fields), found.timeout_s)
    if found.method is None:
        raise Unsupported("Method not found!")
    if found.encoding not in _ENCODINGS:
        raise Unsupported("The message's encoding is not supported: send identity, gzip or deflate")


def timeout_s(given: bytes) -> float:
    """Of the header grpc-timeout. Raises InvalidInput."""
    match = _TIMEOUT.fullmatch(given)
    if match is None:
        raise InvalidInput("grpc-timeout must be a number of at most 8 digits and a unit")
    return int(match[1]) * _UNITS_S[match[2]]


def _listed(value: bytes) -> list[bytes]:
    return [one.strip() for one in value.split(b",")]


def metadata(fields: list[Field]) -> Metadata:
    """The caller's own. Raises InvalidInput for a binary value that is none."""
    found: Metadata = []
    for name, value in fields:
        if name in _RESERVED:
            continue
        text = name.decode("ascii")
        if name.endswith(b"-bin"):
            found += [(text, _binary(one)) for one in value.split(b",")]
        else:
            found.append((text, value.decode("latin-1")))
    return found


def _binary(value: bytes) -> bytes:
    value = value.strip()
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise InvalidInput("metadata whose names end in -bin are base64") from error
