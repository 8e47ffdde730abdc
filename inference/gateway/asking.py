"""One request of a WebSocket connection, from its frame to its one last frame.

An answer that the client does not take now (it reads slowly, or has granted no more credit) waits here, bounded in
number and bytes: beyond AHEAD_HIGH the replica is paused, and beyond the connection's MAX_BEHIND_BYTES the request ends
with Overloaded. The laws: exactly one last frame per request, an answer or an error; an error ends it at once, and
what still waited is dropped.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from inference.errors import Cancelled, InvalidInput, Overloaded, SerinusError, ServerError
from inference.gateway import calls, envelopes, mappings
from inference.gateway.dataplane import Asked
from inference.gateway.flights import Flight
from inference.protocol.messages import Answer, SequenceControl
from inference.protocol.oip import Signature

if TYPE_CHECKING:
    from inference.gateway.stream import Stream

AHEAD_HIGH, AHEAD_LOW = 16, 4
PAUSE_BYTES = 1 << 20
MAX_BEHIND_BYTES = 64 << 20
_NO_KEYS: dict[str, msgspec.Raw] = {}
_log = logging.getLogger(__name__)


class Asking:
    """credit: answers that may still be sent, -1 for no bound. starving_since: when it ran out while answers wait."""

    __slots__ = (
        "_flight", "_is_paused", "_is_text", "_parts", "_rest", "_stream", "_waiting", "_waiting_bytes", "body",
        "credit", "given", "id", "starving_since",
    )  # fmt: skip

    def __init__(
        self,
        stream: Stream,
        body: envelopes.FrameBody,
        rest: memoryview,
        given: dict[str, msgspec.Raw] | None,
        *,
        is_text: bool,
    ) -> None:
        self._stream = stream
        self.id = body.id
        self.body: envelopes.FrameBody | None = body  # until it is read
        self._rest = rest
        self.given = given  # the values of a generate request
        self._is_text = is_text
        self.credit = -1 if body.credit is None else body.credit
        self.starving_since = 0.0
        self._flight: Flight | None = None
        self._waiting: deque[tuple[Flight, Answer, memoryview]] | None = None
        self._waiting_bytes = 0
        self._parts = 0
        self._is_paused = False

    def start(self, asked: Asked) -> None:
        """Sets it on its way. Raises what is wrong with it."""
        self._flight = self._stream.plane.start(asked, self._read, self._answered, self._failed)

    def _read(self, model: str, signature: Signature) -> calls.Call:
        body, rest = self.body, self._rest
        assert body is not None
        self.body, self._rest = None, memoryview(b"")
        if self.given is not None:
            if not self._is_text:
                raise InvalidInput("generate is asked for with a text frame")
            call = mappings.read(self.given, body, model, signature)
            self.given = _NO_KEYS
        else:
            call = calls.read(body, rest, model, signature, binary=not self._is_text)
            if self._is_text and (call.binary is None or call.binary):
                raise InvalidInput("binary outputs are sent only in answer to a binary frame")
        if call.sequence is None:
            call.sequence = sequence_of(call.parameters)
        call.traceparent = body.traceparent
        return call

    # -- what the data plane calls ----------------------------------------------------------------------------------

    def _answered(self, flight: Flight, answer: Answer, body: memoryview) -> None:
        stream = self._stream
        if answer.final:
            stream.plane.answered(flight, answer)
        if self._waiting is None and stream.socket.is_writable and self._has_credit(answer):
            self._send(flight, answer, body)
            return
        if stream.behind_bytes + len(body) > MAX_BEHIND_BYTES:
            self.end(Overloaded("the answers that this connection has not read are too many: read them"))
            return
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append((flight, answer, body))
        self._waiting_bytes += len(body)
        stream.fell_behind(self, len(body))
        self._mark_starving()
        is_much = len(self._waiting) >= AHEAD_HIGH or self._waiting_bytes >= PAUSE_BYTES
        if is_much and not self._is_paused and not answer.final and flight.link is not None:
            self._is_paused = True
            flight.link.pause(flight)

    def _failed(self, _flight: Flight, error: SerinusError) -> None:
        self.end(error)

    # -- sending ----------------------------------------------------------------------------------------------------

    def _has_credit(self, answer: Answer) -> bool:
        return self.credit != 0 or (answer.final and not answer.tensors)

    def _mark_starving(self) -> None:
        if self._waiting and not self._has_credit(self._waiting[0][1]):
            self.starving_since = self.starving_since or time.monotonic()
        else:
            self.starving_since = 0.0

    def has_starved(self, now: float, limit_s: float) -> bool:
        """Whether it has waited for credit past its deadline, or longer than `limit_s`."""
        if not self.starving_since or self._flight is None:
            return False
        return now > self._flight.deadline or now - self.starving_since > limit_s

    def grant(self, count: int) -> None:
        """The client takes `count` answers more."""
        if self.credit >= 0:
            self.credit = min(self.credit + count, envelopes.MAX_CREDIT)
            self.go_on()

    def go_on(self) -> bool:
        """Sends what waits as far as the client takes it; whether nothing waits any more."""
        while self._waiting and self._stream.socket.is_writable and self._has_credit(self._waiting[0][1]):
            flight, answer, body = self._waiting.popleft()
            self._waiting_bytes -= len(body)
            self._stream.behind_bytes -= len(body)
            self._send(flight, answer, body)
            if self._is_paused and len(self._waiting) <= AHEAD_LOW and self._waiting_bytes < PAUSE_BYTES:
                self._is_paused = False
                if flight.link is not None and not flight.has_ended:
                    flight.link.resume(flight)
        if not self._waiting:
            self._waiting = None
        self._mark_starving()
        return self._waiting is None

    def _send(self, flight: Flight, answer: Answer, body: memoryview) -> None:
        try:
            parts = self._frame(flight, answer, body)
        except SerinusError as error:
            self.end(error)
            return
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            _log.exception("an answer on a stream of '%s' could not be written", flight.endpoint.route.name)
            self.end(ServerError())
            return
        self._parts += 1
        if self.credit > 0 and answer.tensors:
            self.credit -= 1
        self._stream.socket.send(parts, is_text=self._is_text)
        if answer.final:
            self._stream.ended(self)

    def _frame(self, flight: Flight, answer: Answer, body: memoryview) -> list[envelopes.Part]:
        variant, name = flight.variant, flight.endpoint.route.name
        parts: list[memoryview] = []
        if self.given is not None:
            found = {"model_name": name, "model_version": variant.version, "id": self.id}
            text = envelopes.values(found | mappings.write(answer.tensors, body))
        else:
            arm = {"rollout_arm": variant.route.arm}
            text, parts = calls.write(flight.call, name, variant.version, answer.tensors, body, parameters=arm)
        if self._parts or not answer.final:
            text = envelopes.response(text, is_final=answer.final)
        return envelopes.join(text, parts, is_text=self._is_text)

    # -- ending -----------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """The client wants no answer any more: it gets an error that says so."""
        self.end(Cancelled())

    def end(self, error: SerinusError) -> None:
        """Ends it with `error`, whatever still waits."""
        self.drop()
        self._stream.ended(self)
        self._stream.refuse(self.id, error, is_text=self._is_text)

    def drop(self) -> None:
        """Ends it without a word: the client is gone, or the last word follows."""
        if self._waiting:
            self._stream.behind_bytes -= self._waiting_bytes
        self._waiting = None
        if self._flight is not None:
            self._stream.plane.abandon(self._flight)


def sequence_of(parameters: dict[str, calls.Scalar]) -> SequenceControl | None:
    """What the parameters say about a sequence, which they lose. Raises InvalidInput."""
    identity = parameters.pop("sequence_id", 0)
    start, end = parameters.pop("sequence_start", False), parameters.pop("sequence_end", False)
    if not isinstance(start, bool) or not isinstance(end, bool):
        raise InvalidInput("parameters 'sequence_start' and 'sequence_end' must be true or false")
    if isinstance(identity, bool | float) or (isinstance(identity, int) and not 0 <= identity < 1 << 63):
        raise InvalidInput("parameter 'sequence_id' must be a whole number, at least 1, or a name")
    if not identity:
        if start or end:
            raise InvalidInput("'sequence_start' and 'sequence_end' need a 'sequence_id' that is not 0")
        return None
    if isinstance(identity, str) and len(identity) > calls.MAX_ID_CHARS:
        raise InvalidInput(f"'sequence_id' is longer than {calls.MAX_ID_CHARS} characters")
    return SequenceControl(identity, start, end)
