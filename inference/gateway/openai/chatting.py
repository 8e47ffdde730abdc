"""`chat` and `completion` on a WebSocket: the same requests and chunks as over HTTP, each in a frame of its own.

-> {"type": "chat", "id": "1", "body": {"model": ..., "messages": [...]}}
<- {"type": "chunk", "id": "1", "data": {"object": "chat.completion.chunk", ...}}  ...  {"type": "done", "id": "1", ...}
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from inference.errors import InvalidInput, Malformed, NotReady, SerinusError
from inference.gateway import codec, envelopes
from inference.gateway.admission import Caller
from inference.gateway.asking import Asking
from inference.gateway.calls import MAX_ID_CHARS, Call, Parameters
from inference.gateway.openai import asking, checks, completions
from inference.gateway.openai.asking import Target
from inference.gateway.openai.chunks import ChatChunks, CompletionChunks, Wrap
from inference.gateway.openai.problems import BadField, NoSuchModel
from inference.gateway.parameters import whole
from inference.gateway.table import Variant
from inference.protocol.generation import Generate
from inference.protocol.messages import Answer
from inference.protocol.openai import ChatBody, CompletionBody

if TYPE_CHECKING:
    from inference.gateway.stream import Stream

KINDS = frozenset({"chat", "completion"})
_EMPTY = memoryview(b"")
_encode = msgspec.json.Encoder().encode


class _Frame(msgspec.Struct):
    body: msgspec.Raw = msgspec.Raw()
    parameters: Parameters | None = None


_decode = msgspec.json.Decoder(_Frame).decode


class Chatting(Asking):
    """One chat of a connection. Credit counts chunks: what one event brings beyond it is owed, and paid first."""

    __slots__ = ("_adapter", "_owed", "_timeout_us", "_writer", "openai")

    most_ms = asking.GENERATION_MS

    def __init__(self, stream: Stream, body: envelopes.FrameBody, head: bytes | memoryview, *, is_text: bool) -> None:
        super().__init__(stream, body, _EMPTY, None, is_text=is_text)
        if not is_text:
            raise InvalidInput(f"{body.type} is asked for with a text frame")
        if len(body.id) > MAX_ID_CHARS:
            raise InvalidInput(f"'id' is longer than {MAX_ID_CHARS} characters")
        given = _given(head)
        if not given.body:
            raise BadField("A frame of this kind has its request in 'body'.", "body", "missing_required_parameter")
        kind: Any = ChatBody if body.type == "chat" else CompletionBody
        self.openai: ChatBody | CompletionBody = checks.decode(bytes(given.body), kind)
        self.openai.stream = True
        self.openai.model = self.openai.model or body.model or stream.name
        self._timeout_us = whole(given.parameters or {}, "timeout", "a whole number of microseconds")
        body.model, version, self._adapter = asking.split(self.openai.model)
        found = stream.plane.table.now.endpoints.get(body.model)
        if self._adapter and found is not None:
            with contextlib.suppress(NoSuchModel):  # said once the caller is known to be let in
                version = asking.holder(found, version, self._adapter)
        if version is not None:
            body.version = version
        self._owed = 0
        self._writer = self._opened()

    def _opened(self) -> ChatChunks | CompletionChunks:
        body = self.openai
        own = _encode({"type": "chunk", "id": self.id})[:-1] + b',"data":'
        wrap = Wrap(own, b"}", b"")  # the last frame says who answered, and that is not known yet
        if isinstance(body, ChatBody):
            return ChatChunks(f"chatcmpl-{self.id}", body, wrap, completions.prefix_of(body))
        return CompletionChunks(f"cmpl-{self.id}", body, wrap)

    def read(self, variant: Variant) -> Call:
        frame, body = self.body, self.openai
        assert frame is not None
        if self._adapter and self._adapter not in variant.route.adapters:
            raise asking.no_adapter(self.endpoint.route.name, self._adapter)
        target = Target(Caller(self.key, frozenset()), self.endpoint, None, self._adapter)
        message = _message(body, target)
        trace = (frame.traceparent, frame.tracestate)
        call = asking.language_call(message, self.endpoint.route.name, trace)(variant)
        call.timeout_us = self._timeout_us
        return call

    def stop(self, error: SerinusError) -> None:
        super().stop(self._writer.in_stream(error))

    def grant(self, count: int) -> None:
        paid = min(self._owed, count)
        self._owed -= paid
        super().grant(count - paid)

    def _send(self, answer: Answer, body: memoryview) -> None:
        try:
            event = asking.event_of(answer, body)
        except NotReady as error:
            self.stop(error)
            return
        messages = self._writer.event(event) if event is not None else []
        if self.credit >= 0:
            paid = min(self.credit, len(messages))
            self.credit -= paid
            self._owed += len(messages) - paid
        if answer.final:
            messages += [*self._writer.end(), self._done()]
        for message in messages:
            self._stream.socket.send([message], is_text=True)
        if answer.final:
            self._stream.ended(self)

    def _done(self) -> bytes:
        told = {"type": "done", "id": self.id, "model_version": self.variant.version}
        told["rollout_arm"] = self.variant.route.arm
        feedback = self._stream.plane.feedback.of(self)
        return _encode(told | ({"feedback_id": feedback} if feedback else {}))


def _given(head: bytes | memoryview) -> _Frame:
    try:
        return _decode(head)
    except codec.JSON_ERRORS as error:
        raise Malformed(f"failed to parse the frame's JSON: {error}") from error


def _message(body: ChatBody | CompletionBody, target: Target) -> Generate:
    if isinstance(body, ChatBody):
        return completions.chat_message(body, target)
    found = completions.completion_messages(body, target)
    if len(found) > 1:
        raise BadField("A frame takes one prompt: send a frame for each.", "prompt")
    return found[0]
