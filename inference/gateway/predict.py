"""The infer call of the REST door: the one path where microseconds count, so callbacks and no task.

What a head says (endpoint, caller, deadline, encodings) is found out once for its very bytes, and holds for as long as
the routing table and the credential do.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from inference.errors import InvalidInput, Malformed, SerinusError, ServerError
from inference.gateway import answers, calls, encodings, parameters, problems
from inference.gateway.admission import Caller
from inference.gateway.choosing import HEADER as PIN
from inference.gateway.choosing import Asked, pin
from inference.gateway.dataplane import DataPlane
from inference.gateway.feedback_ids import HEADER as FEEDBACK
from inference.gateway.flights import Flight
from inference.gateway.heads import Head
from inference.gateway.shared_memory import Regions, Shared
from inference.gateway.table import Endpoint, Snapshot, Variant
from inference.gateway.web import JSON_TYPE, Given, Headers, Part
from inference.protocol.messages import Answer
from inference.protocol.oip import Signature

if TYPE_CHECKING:
    from inference.gateway.http import Connection

MAX_TIMEOUT_MS = 86_400_000
HINT_BYTES = 4096
NO_SPLIT = "Where binary tensors follow it, the header Inference-Header-Content-Length says how many bytes the JSON has"
BINARY_TYPE = (b"content-type", b"application/octet-stream")
_BEARER = "bearer "
_EMPTY = memoryview(b"")
_log = logging.getLogger(__name__)


def credential_of(headers: Given) -> str:
    """The API key or token that a request carries, "" without any."""
    given = headers.get(b"authorization")
    if given is not None:
        text = given.decode("latin-1")
        return text[len(_BEARER) :].strip() if text[: len(_BEARER)].lower() == _BEARER else text
    return headers.get(b"x-api-key", b"").decode("latin-1")


def timeout_of(headers: Given) -> int:
    """Milliseconds of `X-Request-Timeout-Ms`, 0 without it. Raises InvalidInput."""
    given = headers.get(b"x-request-timeout-ms")
    if given is None:
        return 0
    if not given.isdigit() or not 1 <= len(given) <= 9 or not 1 <= int(given) <= MAX_TIMEOUT_MS:
        raise InvalidInput("X-Request-Timeout-Ms must be a whole number of milliseconds, at least 1")
    return int(given)


class Known:
    """What a head says to this door, as of one routing table. names_itself: it brings its own request id."""

    __slots__ = (
        "accepts", "asked", "encoding", "expires_at_unix_s", "forwarded", "is_plain", "is_sticky", "names_itself", "shared",
        "snapshot", "split", "traceparent",
    )  # fmt: skip

    def __init__(
        self, snapshot: Snapshot, caller: Caller, endpoint: Endpoint, number: int | None, headers: Given
    ) -> None:
        self.snapshot = snapshot
        self.expires_at_unix_s = caller.expires_at_unix_s
        session = headers.get(b"x-session-id")
        sticky = session.decode("latin-1") if session else caller.id
        self.is_sticky = bool(sticky) or endpoint.only is not None
        version = pin(endpoint.route, number, headers.get(PIN))
        self.asked = Asked(
            caller, endpoint, version, sticky, timeout_of(headers), headers=headers, has_session=bool(session)
        )
        self.names_itself = b"x-request-id" in headers
        self.split = _split_of(headers)
        self.encoding = headers.get(b"content-encoding", b"identity").lower()
        self.accepts = encodings.accepted(headers.get(b"accept-encoding", b""))
        self.traceparent = headers.get(b"traceparent", b"").decode("latin-1")
        self.is_plain = self.split < 0 and self.encoding == b"identity" and not self.traceparent
        self.shared: Shared | None = None
        self.forwarded: dict[str, parameters.Scalar] = {}


def _split_of(headers: Given) -> int:
    """The length of the JSON before the binary tensors; -1 where the whole body is JSON."""
    given = headers.get(b"inference-header-content-length")
    if given is None:
        return -1
    if not given.isdigit() or len(given) > 12:
        raise Malformed("Inference-Header-Content-Length does not fit the request body")
    return int(given)


class Predict:
    """Answers `POST /v2/models/{name}[/versions/{number}]/infer`. limit_bytes: of a body, once it is decompressed.
    regions: clients' shared memory, where it is allowed; forward: headers that become parameters.
    """

    def __init__(
        self,
        plane: DataPlane,
        *,
        limit_bytes: int,
        regions: Regions | None = None,
        forward: re.Pattern[str] | None = None,
    ) -> None:
        self._plane = plane
        self._limit_bytes = limit_bytes
        self._regions = regions
        self._forward = forward

    def known(self, head: Head, name: str, number: int | None) -> Known:
        """Raises what is wrong with the head: Unauthenticated, Forbidden, NotFound, InvalidInput, Malformed."""
        caller, endpoint = self._plane.admit(name, credential_of(head.headers))
        known = Known(self._plane.table.now, caller, endpoint, number, head.headers)
        if self._regions is not None:
            known.shared = self._regions.of("" if self._plane.insecure else caller.id)
        if self._forward is not None:
            known.forwarded = parameters.forwarded(head.headers, self._forward)
            known.is_plain = known.is_plain and not known.forwarded
        return known

    def holds(self, known: Known | None) -> bool:
        """Whether what was found out is still so."""
        return known is not None and known.snapshot is self._plane.table.now and known.expires_at_unix_s > time.time()

    def begin(self, connection: Connection, known: Known, body: Part, request_id: bytes) -> None:
        """Sets a request on its way; its answer goes to `connection`. Raises what is wrong with it."""
        flying = _Flying(self._plane, connection, known, request_id)
        asked = known.asked
        if known.encoding != b"identity":
            body = encodings.inflate(body, known.encoding, self._limit_bytes)
        if not known.is_sticky:
            asked = replace(asked, sticky=request_id.decode())
        flying.body = body
        connection.owner = flying
        try:
            self._plane.start(flying, asked, flying.read)
        except BaseException:
            connection.owner = None
            raise
        flying.body = b""


def _read(known: Known, body: Part, model: str, signature: Signature) -> calls.Call:
    split = known.split
    if split < 0:
        return calls.read(_parse_all(body), _EMPTY, model, signature, shared=known.shared)
    view = memoryview(body)
    if split > len(view):
        raise Malformed("Inference-Header-Content-Length does not fit the request body")
    if not split:
        return calls.read_raw(view, model, signature)
    return calls.read(calls.parse(view[:split]), view[split:], model, signature, shared=known.shared)


def _parse_all(body: Part) -> calls.InferBody:
    """A body that is JSON to its end. Raises Malformed."""
    try:
        return calls.parse(body)
    except Malformed as error:
        if b'"binary_data_size"' not in bytes(body[:HINT_BYTES]):
            raise
        raise Malformed(f"{error.message}. {NO_SPLIT}") from error


class _Flying(Flight):
    """One request of one connection, on its way."""

    __slots__ = ("_connection", "_is_plain", "_known", "_plane", "_request_id", "body")

    def __init__(self, plane: DataPlane, connection: Connection, known: Known, request_id: bytes) -> None:
        super().__init__()
        self._plane = plane
        self._connection = connection
        self._known = known
        self._request_id = request_id
        self._is_plain = False
        self.body: Part = b""

    def read(self, variant: Variant) -> calls.Call:
        """The call in its body."""
        known = self._known
        self._is_plain = False
        if known.is_plain and variant.plain is not None:
            plain = variant.plain.read(self.body)
            if plain is not None:
                self._is_plain = True
                return plain
            # others of this client will not be plain either
            known.is_plain = False
        call = _read(known, self.body, self.endpoint.route.name, variant.route.signature)
        call.traceparent = known.traceparent
        if known.forwarded:
            call.parameters |= known.forwarded
            call.forwarded = frozenset(known.forwarded)
        return call

    def left(self) -> None:
        """The client closed its connection."""
        self._plane.abandon(self)

    def answered(self, answer: Answer, body: memoryview) -> None:
        if not answer.final:
            self._plane.abandon(self)
            name = self.endpoint.route.name
            self._problem(InvalidInput(f"model '{name}' gives several answers: use generate_stream or gRPC"))
            return
        self._plane.answered(self, answer)
        try:
            self._write(answer, body)
        except SerinusError as error:
            self._problem(error)
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            _log.exception("request %s: its answer could not be written", self._request_id.decode())
            self._problem(ServerError())

    def failed(self, error: SerinusError) -> None:
        self._problem(error)

    def _feedback(self) -> Headers:
        """The id for the answer's score; it is the request's own id where the client gave none."""
        identity = self._plane.feedback.of(self).encode()
        if not identity:
            return []
        if not self._known.names_itself:
            self._request_id = identity
        return [(FEEDBACK, identity)]

    def _problem(self, error: SerinusError) -> None:
        headers = [*problems.headers_of(error), (b"x-request-id", self._request_id)]
        if self._known.traceparent:
            headers.append((b"traceparent", self._known.traceparent.encode("latin-1")))
        self._connection.respond(problems.status_of(error), headers, problems.body_of(error))

    def _write(self, answer: Answer, body: memoryview) -> None:
        connection, accepts, variant = self._connection, self._known.accepts, self.variant
        feedback = self._feedback() if self.endpoint.route.steering is not None else []
        if self._is_plain and variant.plain is not None and connection.is_plain and not accepts:
            data = variant.plain.write(self.call, answer, body, self._request_id, feedback)
            if data is not None:
                connection.write_answer(data)
                return
        text, parts = answers.write(
            self.call, self.endpoint.route.name, variant.version, answer.tensors, body,
            parameters=answer.parameters or None,
        )  # fmt: skip
        headers: Headers = [(b"x-request-id", self._request_id), *variant.headers, *feedback]
        if self.call.traceparent:
            headers.append((b"traceparent", self.call.traceparent.encode("latin-1")))
        if self.call.binary is None or parts:
            headers += (BINARY_TYPE, (b"inference-header-content-length", str(len(text)).encode()))
            connection.respond(200, *encodings.deflated(headers, [text, *parts], accepts))
        else:
            headers.append(JSON_TYPE)
            connection.respond(200, *encodings.deflated(headers, [text], accepts))
