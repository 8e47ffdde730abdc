"""What a connection expects of whoever answers its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from inference.errors import SerinusError
from inference.gateway.heads import Head
from inference.gateway.web import Part

if TYPE_CHECKING:
    from inference.gateway.http import Connection


class Application(Protocol):
    """What answers requests. Each method is called in the event loop and must not block."""

    @property
    def draining(self) -> bool:
        """Whether connections are to close with their next answer."""
        ...

    def passes_on(self, head: Head) -> bool:
        """Whether this request's body is passed on while it comes, in `Connection.incoming`, whatever its size."""
        ...

    def preflight(self, head: Head) -> None:
        """Called when a head has come whose body is still on its way. Raises SerinusError to refuse it."""
        ...

    def memory(self, head: Head) -> memoryview | None:
        """Called after `preflight` for a large body: where it shall be received; None: anywhere."""
        ...

    def handle(self, connection: Connection, head: Head, body: Part) -> None:
        """Takes a whole request; it ends with one `respond` or `stream`, now or later. Raises nothing."""
        ...

    def refuse(self, connection: Connection, head: Head | None, error: SerinusError) -> None:
        """Answers what could not be read; the connection closes after it."""
        ...

    def upgrade(self, connection: Connection, head: Head, rest: bytes) -> None:
        """Takes the connection over: it speaks another protocol from here on."""
        ...


class Owner(Protocol):
    """Whoever works on a connection's request: told when its client has left."""

    def left(self) -> None: ...
