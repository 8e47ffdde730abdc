"""Which address belongs to which door, and the one place where errors become answers. An error that nobody foresaw
reaches the client as one fixed sentence; the log has the rest.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from inference.config import is_loopback
from inference.errors import Forbidden, Malformed, MethodNotAllowed, NotFound, SerinusError, ServerError
from inference.gateway import encodings, problems
from inference.gateway.dataplane import DataPlane
from inference.gateway.feedback_ids import HEADER as FEEDBACK
from inference.gateway.heads import Head
from inference.gateway.openai import files
from inference.gateway.openai import problems as openai_problems
from inference.gateway.predict import Known, Predict, credential_of
from inference.gateway.rest import Rest
from inference.gateway.web import Given, Part, Request, Response, Stream

if TYPE_CHECKING:
    from inference.gateway.http import Connection
    from inference.gateway.websocket import Streams

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_MODEL = re.compile(rf"/v2/models/({NAME})(?:/versions/([0-9]{{1,9}}))?(?:/([a-z_/]+))?")
_ANY_NAME = re.compile(r"/v2/models/([^/]{1,512})(?:/versions/[0-9]{1,9})?(?:/([a-z_/]+))?")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response | Stream]]


@dataclass(frozen=True, slots=True)
class Door:
    """What answers at an address. `speaks` is "infer" or "websocket" for the two that are no handlers."""

    methods: frozenset[str]
    handler: Handler | None = None
    speaks: str = ""


@dataclass(slots=True)
class Place:
    """What a path means, kept with its head. `known` is the infer door's own."""

    what: str
    door: Door
    name: str = ""
    number: int | None = None
    rest: tuple[str, ...] = ()
    known: Known | None = None


GET = frozenset({"GET", "HEAD"})
POST = frozenset({"POST"})


class Doors:
    """The table of addresses: whole paths, verbs of a model, and patterns for the rest. Tests walk it."""

    def __init__(self) -> None:
        self.paths: dict[str, Door] = {}
        self.verbs: dict[str | None, Door] = {}
        self.patterns: list[tuple[str, re.Pattern[str], Door]] = []

    def path(self, path: str, methods: frozenset[str], handler: Handler | None, speaks: str = "") -> None:
        self.paths[path] = Door(methods, handler, speaks)

    def verb(self, verb: str | None, methods: frozenset[str], handler: Handler | None, speaks: str = "") -> None:
        """`/v2/models/{name}[/versions/{number}][/verb]`"""
        self.verbs[verb] = Door(methods, handler, speaks)

    def pattern(self, what: str, pattern: str, methods: frozenset[str], handler: Handler) -> None:
        """A regular expression over the whole path; its groups come to the handler as `request.rest`."""
        self.patterns.append((what, re.compile(pattern), Door(methods, handler)))

    def find(self, path: str) -> Place:
        """Raises NotFound."""
        door = self.paths.get(path)
        if door is not None:
            return Place(path, door)
        match = _MODEL.fullmatch(path)
        if match is not None:
            name, number, verb = match.groups()
            door = self.verbs.get(verb)
            if door is not None:
                return Place(verb or "model", door, name, int(number) if number else None)
        for what, pattern, door in self.patterns:
            match = pattern.fullmatch(path)
            if match is not None:
                return Place(what, door, rest=tuple(group or "" for group in match.groups()))
        raise self.missing(path)

    def missing(self, path: str) -> NotFound:
        """What is said to an address that there is not: where all but a model's name is good, that no model has it."""
        match = _ANY_NAME.fullmatch(path)
        name = unquote(match[1]) if match is not None and match[2] in self.verbs else ""
        if re.fullmatch(NAME, name) or len(name) > 128 or not name.isprintable() or not name:
            return NotFound("Not Found")
        return NotFound(
            f"Request for unknown model: '{name}' is not found. Names have letters, digits, '.', '_' and '-' only"
        )


class App:
    """Answers requests; see application.Application."""

    def __init__(self, plane: DataPlane, rest: Rest, predict: Predict, streams: Streams, doors: Doors) -> None:
        self._plane = plane
        self._rest = rest
        self._predict = predict
        self._streams = streams
        self._doors = doors
        self._ids = count(1)
        self._boot = os.urandom(6).hex().encode()

    @property
    def draining(self) -> bool:
        return self._plane.draining

    # -- what http.Connection calls ---------------------------------------------------------------------------------

    def passes_on(self, head: Head) -> bool:
        return head.path == files.UPLOADS and head.method == "POST"

    def preflight(self, head: Head) -> None:
        place = self._place(head)
        if head.method not in place.door.methods:
            raise MethodNotAllowed
        if place.name:
            self._plane.admit(place.name, credential_of(head.headers))
        elif not (openai_problems.is_ours(head.path) and self._may_be_anonymous(head)):
            self._rest.known(head.headers)

    def _may_be_anonymous(self, head: Head) -> bool:
        """Whether the body may name an endpoint that needs no key."""
        return not credential_of(head.headers) and any(
            endpoint.route.public for endpoint in self._plane.table.now.endpoints.values()
        )

    def memory(self, head: Head) -> memoryview | None:
        place = self._place(head)
        if place.door.speaks != "infer" or not head.json_bytes or b"content-encoding" in head.headers:
            return None
        return self._plane.memory(place.name, place.number, head.length, -head.json_bytes)

    def handle(self, connection: Connection, head: Head, body: Part) -> None:
        request_id = self._request_id(head.headers)
        try:
            place = self._place(head)
            door = place.door
            if head.method not in door.methods:
                raise MethodNotAllowed
            if door.speaks == "infer":
                if not self._predict.holds(place.known):
                    place.known = self._predict.known(head, place.name, place.number)
                assert place.known is not None
                self._predict.begin(connection, place.known, body, request_id)
                return
            if door.handler is None:
                if place.name:
                    self._plane.admit(place.name, credential_of(head.headers))
                else:
                    self._rest.known(head.headers)
                raise Malformed("This address speaks WebSocket")
            request = Request(head, body, request_id.decode(), place.what, place.name, place.number, place.rest)
            request.incoming = connection.incoming
            _Task(connection, self._serve(connection, request, door.handler))
        except SerinusError as error:
            self._problem(connection, head, error, request_id)
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            _log.exception("request %s failed", request_id.decode())
            self._problem(connection, head, ServerError(), request_id)

    def refuse(self, connection: Connection, head: Head | None, error: SerinusError) -> None:
        request_id = self._request_id(head.headers if head is not None else {})
        self._problem(connection, head, error, request_id, closes=True)

    def upgrade(self, connection: Connection, head: Head, rest: bytes) -> None:
        try:
            if head.method != "GET":
                raise MethodNotAllowed
            place = self._place(head)
            if place.door.speaks != "websocket":
                raise NotFound("Not Found")
        except SerinusError:
            self._streams.refuse(connection)
            return
        self._streams.open(
            connection,
            head,
            rest,
            name=place.name,
            number=place.number,
            request_id=self._request_id(head.headers).decode(),
        )

    # -- finding ----------------------------------------------------------------------------------------------------

    def _place(self, head: Head) -> Place:
        place: Place | None = head.memo
        if place is None:
            if self._plane.insecure:
                _refuse_foreign(head.headers)
            # No name here needs an escape, and one that stands for a slash would let an address pass a proxy's rules.
            # Models of OpenAI's API may have names that do, and theirs are looked up, not walked.
            if "%" in head.path and not head.path.startswith("/v1/models/"):
                raise self._doors.missing(head.path)
            place = head.memo = self._doors.find(head.path)
        return place

    def _request_id(self, given: Given) -> bytes:
        own = given.get(b"x-request-id")
        if own is not None and _REQUEST_ID.fullmatch(own):
            return own
        return b"%b-%x" % (self._boot, next(self._ids))

    # -- answering --------------------------------------------------------------------------------------------------

    async def _serve(self, connection: Connection, request: Request, handler: Handler) -> None:
        try:
            encoding = request.headers.get(b"content-encoding", b"identity").lower()
            if encoding != b"identity":
                request.body = self._rest.inflated(request.body, encoding)
            answer = await handler(request)
        except SerinusError as error:
            self._problem(connection, request.head, error, request.id.encode())
            return
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            _log.exception("request %s failed", request.id)
            self._problem(connection, request.head, ServerError(), request.id.encode())
            return
        answer.headers.append((b"x-request-id", _shown_id(request, answer)))
        if isinstance(answer, Stream):
            await self._stream(connection, request, answer)
            return
        parts = [answer.body] if isinstance(answer.body, bytes | memoryview) else answer.body
        accepts = encodings.accepted(request.headers.get(b"accept-encoding", b""))
        connection.respond(answer.status, *encodings.deflated(answer.headers, parts, accepts))

    async def _stream(self, connection: Connection, request: Request, answer: Stream) -> None:
        try:
            await connection.stream(answer)
        except Exception:  # noqa: BLE001 (its head is out: all that is left is to cut it)
            _log.exception("stream of request %s failed", request.id)
            connection.abort()

    def _problem(
        self, connection: Connection, head: Head | None, error: SerinusError, request_id: bytes, *, closes: bool = False
    ) -> None:
        _log.debug("request %s was refused: %s", request_id.decode(), error.code)
        form = openai_problems if head is not None and openai_problems.is_ours(head.path) else problems
        status = form.status_of(error)
        headers = [*form.headers_of(error), (b"x-request-id", request_id)]
        if head is not None and (context := head.headers.get(b"traceparent")):
            headers.append((b"traceparent", context))
        if error.code == "method_not_allowed" and head is not None:
            headers.append((b"allow", ", ".join(sorted(self._place(head).door.methods)).encode()))
        if closes or status == 413:
            headers.append((b"connection", b"close"))
        connection.respond(status, headers, form.body_of(error))


class _Task:
    """A request that is answered by a coroutine, which is cancelled when its client leaves."""

    def __init__(self, connection: Connection, work: Awaitable[None]) -> None:
        connection.owner = self
        self._task = asyncio.ensure_future(work)

    def left(self) -> None:
        self._task.cancel()


def _shown_id(request: Request, answer: Response | Stream) -> bytes:
    """The client's own request id where it sent a good one, else that of the answer's feedback, if it has one."""
    own = request.id.encode()
    if request.headers.get(b"x-request-id") == own:
        return own
    return next((value for name, value in answer.headers if name == FEEDBACK), own)


def _refuse_foreign(given: Given) -> None:
    """Where no key is asked for, a page from elsewhere could have a person's browser call this machine.

    Raises Forbidden unless the Host and, of a browser, the Origin are this machine's own.
    """
    addresses = [b"http://" + given[b"host"]] if b"host" in given else []
    addresses += [given[b"origin"]] if b"origin" in given else []
    if not all(is_loopback(_host_of(address.decode("latin-1"))) for address in addresses):
        raise Forbidden("Without keys (--insecure) only this machine's own addresses are served")


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
