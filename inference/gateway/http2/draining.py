"""How a connection ends in peace: two GOAWAYs, and a ping between them that says when the first was read (RFC 9113, 6.8)."""

from __future__ import annotations

from inference.gateway.http2 import frames
from inference.gateway.http2.frames import Code
from inference.gateway.http2.outbox import Outbox

PING = b"draining"
_WHY = "shutting down"


class Draining:
    """last_taken: the highest stream that is answered; none is refused before `end`."""

    __slots__ = ("_has_begun", "last_taken")

    def __init__(self) -> None:
        self._has_begun = False
        self.last_taken = frames.MOST_WINDOW

    def begin(self, outbox: Outbox) -> None:
        """The first GOAWAY: no stream is refused yet, for some are on their way. The ping's answer says that it was read."""
        if not self._has_begun:
            self._has_begun = True
            outbox.put(frames.goaway(frames.MOST_WINDOW, Code.NO_ERROR, _WHY))
            outbox.put(frames.ping(PING, is_ack=False))

    def end(self, outbox: Outbox, last: int) -> None:
        """The second: what came until now is answered, nothing later. last: the highest stream that has come."""
        if self._has_begun and not self.has_ended:
            self.last_taken = last
            outbox.put(frames.goaway(last, Code.NO_ERROR, _WHY))

    @property
    def has_ended(self) -> bool:
        return self.last_taken != frames.MOST_WINDOW
