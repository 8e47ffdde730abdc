"""The WebSocket door, as docs/websocket.md specifies it: handshakes, and all connections of this process.

A question that is no inference (metadata, readiness, configuration, statistics) is put to the REST door's own table of
addresses, so that the two doors cannot say two things.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

from inference.errors import Draining, NotFound, SerinusError, Unsupported
from inference.gateway import envelopes, handshake
from inference.gateway.admission import TRUSTED, Caller
from inference.gateway.app import NAME, Doors
from inference.gateway.bodies import Bodies
from inference.gateway.dataplane import DataPlane
from inference.gateway.heads import Head
from inference.gateway.predict import timeout_of
from inference.gateway.steering import Given
from inference.gateway.stream import NO_HEADERS, Stream
from inference.gateway.web import Request, Response

if TYPE_CHECKING:
    from inference.gateway.http import Connection

BEAT_S = 1.0
SLICE, DUE = 1024, 16  # a look at a connection, and one that had something due
LEAVE_S = 1.0
_NAME = re.compile(NAME)
_OF_SERVER = {"metadata": "/v2", "ready": "/v2/health/ready", "stats": "/v2/models/stats"}
_HANDSHAKE = frozenset({
    b"accept", b"accept-encoding", b"accept-language", b"authorization", b"cache-control", b"connection", b"cookie",
    b"host", b"pragma", b"sec-websocket-extensions", b"sec-websocket-key", b"sec-websocket-protocol",
    b"sec-websocket-version", b"upgrade", b"x-api-key",
})  # fmt: skip
_OF_MODEL = {"metadata": "", "ready": "/ready", "config": "/config", "stats": "/stats"}


class Streams:
    """All WebSocket connections of this process. doors: what the verbs that are no inference are answered by; bodies:
    what large messages are counted among.
    """

    def __init__(self, plane: DataPlane, doors: Doors, bodies: Bodies) -> None:
        self._plane = plane
        self._doors = doors
        self._bodies = bodies
        self._open: set[Stream] = set()

    def __len__(self) -> int:
        return len(self._open)

    def refuse(self, connection: Connection) -> None:
        """A handshake that is not for here, or not allowed: in the same words for every reason."""
        connection.respond(403, [(b"connection", b"close")], b"")

    def open(
        self, connection: Connection, head: Head, rest: bytes, *, name: str, number: int | None, request_id: str
    ) -> None:
        """Answers a handshake; the connection then speaks WebSocket until it ends. name: "" where frames name it."""
        offered = handshake.subprotocols(head)
        credential = handshake.credential(head, offered)
        try:
            caller = self._caller(name, number, credential)
            timeout_ms = timeout_of(head.headers)
            if self._plane.draining:
                raise Draining
            answer = handshake.answer(head, handshake.PROTOCOL if handshake.PROTOCOL in offered else None)
        except SerinusError:
            self.refuse(connection)
            return
        transport = connection.take_over()
        transport.write(answer)
        stream = Stream(
            self._plane, transport, self._bodies, name=name, number=number, verb=self._verb, on_lost=self._open.discard
        )
        stream.credential = credential
        stream.timeout_ms = timeout_ms
        session = head.headers.get(b"x-session-id")
        stream.sticky = session.decode("latin-1") if session else caller.id or request_id
        stream.has_session = bool(session)
        stream.headers = _told(head.headers)
        stream.pings = handshake.PROTOCOL in offered
        self._open.add(stream)
        if rest:
            stream.socket.take(rest)

    def _caller(self, name: str, number: int | None, credential: str) -> Caller:
        """Raises Unauthenticated, Forbidden or NotFound."""
        if name:
            caller, endpoint = self._plane.admit(name, credential)
            if number is not None:
                endpoint.pinned(number)
            return caller
        return TRUSTED if self._plane.insecure else self._plane.table.now.keys.caller(credential)

    async def _verb(self, credential: str, body: envelopes.FrameBody, name: str, number: int | None) -> bytes:
        """The frame that answers such a question. Raises SerinusError."""
        kind = body.type
        if name:
            if not _NAME.fullmatch(name):
                raise NotFound(f"Request for unknown model: '{name[:128]}' is not found")
            pinned = f"/versions/{number}" if number is not None else ""
            path = f"/v2/models/{name}{pinned}{_OF_MODEL[kind]}"
        elif kind in _OF_SERVER:
            path = _OF_SERVER[kind]
        else:
            raise Unsupported(f"'{kind}' is asked of a model: the frame needs 'model'")
        place = self._doors.find(path)
        if place.door.handler is None:
            raise NotFound("Not Found")
        headers = {b"authorization": f"Bearer {credential}".encode()} if credential else {}
        head = Head("GET", path.encode(), headers, is_http11=True)
        answer = await place.door.handler(Request(head, b"", body.id, place.what, place.name, place.number, place.rest))
        if kind == "ready":
            return envelopes.readiness(body.id, is_ready=answer.status == 200)
        assert isinstance(answer, Response)
        whole = bytes(answer.body) if isinstance(answer.body, bytes | memoryview) else b"".join(answer.body)
        return envelopes.verb(kind, body.id, whole)

    # -- life -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Pings, idle limits and stalled readers, for ever; a few connections at a time, so that nobody waits for it."""
        while True:
            began = time.monotonic()
            work = 0
            for stream in list(self._open):
                work += DUE if stream.beat(time.monotonic()) else 1
                if work >= SLICE:
                    work = 0
                    await asyncio.sleep(0)
            await asyncio.sleep(max(0.0, BEAT_S - (time.monotonic() - began)))

    async def drain(self) -> None:
        """Tells every client, lets what is under way finish, and closes all of them."""
        for stream in list(self._open):
            stream.drain()
        while any(not stream.is_idle for stream in self._open):  # noqa: ASYNC110 (the server's own limit ends it)
            await asyncio.sleep(0.02)
        end = time.monotonic() + LEAVE_S
        while self._open and time.monotonic() < end:  # noqa: ASYNC110 (each leaves by itself)
            await asyncio.sleep(0.02)


def _told(headers: Given) -> Given:
    """What a handshake says beside its own business: that is all that is kept of it for the connection's life."""
    return {name: value for name, value in headers.items() if name not in _HANDSHAKE} or NO_HEADERS
