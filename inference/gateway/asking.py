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

from inference.errors import Cancelled, InvalidInput, Overloaded, SerinusError, ServerError
from inference.gateway import answers, calls, envelopes, generate
from inference.gateway.awaiting import Done
from inference.gateway.bodies import Held
from inference.gateway.flights import Flight
from inference.gateway.table import Variant
from inference.gateway.web import Part
from inference.protocol.messages import Answer

if TYPE_CHECKING:
    from inference.gateway.stream import Stream

AHEAD_HIGH, AHEAD_LOW = 16, 4
PAUSE_BYTES = 1 << 20
MAX_BEHIND_BYTES = 64 << 20
_EMPTY = memoryview(b"")
_log = logging.getLogger(__name__)


class Asking(Flight):
    """credit: answers that may still be sent, -1 for no bound. starving_since: when it ran out while answers wait. held:
    what the gateway counts for its frame, None for a small one.
    """

    __slots__ = (
        "_is_paused", "_is_text", "_rest", "_sent", "_stream", "_waiting", "_waiting_bytes", "body", "credit", "given",
        "held", "id", "starving_since",
    )  # fmt: skip

    most_ms = 0  # see dataplane.Asked

    def __init__(
        self, stream: Stream, body: envelopes.FrameBody, rest: memoryview, given: bytes | None, *, is_text: bool
    ) -> None:
        super().__init__()
        self._stream = stream
        self.id = body.id
        self.body: envelopes.FrameBody | None = body  # until it is read
        self._rest = rest
        self.given = given  # the body of a generate request
        self._is_text = is_text
        self.credit = -1 if body.credit is None else body.credit
        self.starving_since = 0.0
        self.held: Held | None = None
        self._waiting: deque[tuple[Answer, memoryview]] | None = None
        self._waiting_bytes = 0
        self._sent = 0
        self._is_paused = False

    def read(self, variant: Variant) -> calls.Call:
        """The call that its frame asks for. Raises what is wrong with it."""
        body, rest, name = self.body, self._rest, self.endpoint.route.name
        signature = variant.route.signature
        assert body is not None
        if self.given is not None:
            if not self._is_text:
                raise InvalidInput("generate is asked for with a text frame")
            call = generate.read(self.given, name, signature)
        else:
            call = calls.read(body, rest, name, signature, binary=not self._is_text)
            if self._is_text and (call.binary is None or call.binary):
                raise InvalidInput("binary outputs are sent only in answer to a binary frame")
        call.traceparent = body.traceparent
        return call

    def settled(self) -> None:
        """It is read for good: its frame may be forgotten."""
        self.body, self._rest = None, _EMPTY
        if self.given is not None:
            self.given = b""

    # -- what the data plane calls ----------------------------------------------------------------------------------

    def answered(self, answer: Answer, body: memoryview) -> None:
        stream = self._stream
        if answer.final:
            stream.plane.answered(self, answer)
        if self._waiting is None and stream.socket.is_writable and self._has_credit(answer):
            self._send(answer, body)
            return
        if stream.behind_bytes + len(body) > MAX_BEHIND_BYTES:
            self.stop(Overloaded("the answers that this connection has not read are too many: read them"))
            return
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append((answer, body))
        self._waiting_bytes += len(body)
        stream.fell_behind(self, len(body))
        self._mark_starving()
        is_much = len(self._waiting) >= AHEAD_HIGH or self._waiting_bytes >= PAUSE_BYTES
        if is_much and not self._is_paused and not answer.final and self.link is not None:
            self._is_paused = True
            self.link.pause(self)

    def failed(self, error: SerinusError) -> None:
        self.stop(error)

    # -- sending ----------------------------------------------------------------------------------------------------

    def _has_credit(self, answer: Answer) -> bool:
        return self.credit != 0 or (answer.final and not answer.tensors)

    def _mark_starving(self) -> None:
        if self._waiting and not self._has_credit(self._waiting[0][0]):
            self.starving_since = self.starving_since or time.monotonic()
        else:
            self.starving_since = 0.0

    def has_starved(self, now: float, limit_s: float) -> bool:
        """Whether it has waited for credit past its deadline, or longer than `limit_s`."""
        if not self.starving_since:
            return False
        return now > self.deadline or now - self.starving_since > limit_s

    def grant(self, count: int) -> None:
        """The client takes `count` answers more."""
        if self.credit >= 0:
            self.credit = min(self.credit + count, envelopes.MAX_CREDIT)
            self.go_on()

    def go_on(self) -> bool:
        """Sends what waits as far as the client takes it; whether nothing waits any more."""
        while self._waiting and self._stream.socket.is_writable and self._has_credit(self._waiting[0][0]):
            answer, body = self._waiting.popleft()
            self._waiting_bytes -= len(body)
            self._stream.behind_bytes -= len(body)
            self._send(answer, body)
            if self._is_paused and len(self._waiting) <= AHEAD_LOW and self._waiting_bytes < PAUSE_BYTES:
                self._is_paused = False
                if self.link is not None and not self.has_ended:
                    self.link.resume(self)
        if not self._waiting:
            self._waiting = None
        self._mark_starving()
        return self._waiting is None

    def _send(self, answer: Answer, body: memoryview) -> None:
        try:
            parts = self._frame(answer, body)
        except SerinusError as error:
            self.stop(error)
            return
        except Exception:  # noqa: BLE001 (logged in full; the client gets one fixed sentence)
            _log.exception("an answer on a stream of '%s' could not be written", self.endpoint.route.name)
            self.stop(ServerError())
            return
        self._sent += 1
        if self.credit > 0 and answer.tensors:
            self.credit -= 1
        self._stream.socket.send(parts, is_text=self._is_text)
        if answer.final:
            self._stream.ended(self)

    def _frame(self, answer: Answer, body: memoryview) -> list[Part]:
        variant, name = self.variant, self.endpoint.route.name
        parts: list[Part] = []
        if self.given is not None:
            text = generate.answer(Done(self.call, variant, answer, body), name)
        else:
            told = {**answer.parameters, "rollout_arm": variant.route.arm}
            feedback = self._stream.plane.feedback.of(self)
            if feedback:
                told["feedback_id"] = feedback
            if self.call.traceparent:
                told["traceparent"] = self.call.traceparent
            text, found = answers.write(self.call, name, variant.version, answer.tensors, body, parameters=told)
            parts += found
        if self._sent or not answer.final:
            text = envelopes.response(text, is_final=answer.final)
        return envelopes.join(text, parts, is_text=self._is_text)

    # -- ending -----------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """The client wants no answer any more: it gets an error that says so."""
        self.stop(Cancelled())

    def stop(self, error: SerinusError) -> None:
        """Ends it with `error`, whatever still waits."""
        self.drop()
        self._stream.ended(self)
        self._stream.refuse(self.id, error, is_text=self._is_text)

    def drop(self) -> None:
        """Ends it without a word: the client is gone, or the last word follows."""
        if self._waiting:
            self._stream.behind_bytes -= self._waiting_bytes
        self._waiting = None
        self._stream.plane.abandon(self)
