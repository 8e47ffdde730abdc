"""Events as chunks of a stream. What no chunk changes is encoded once for the whole stream: with it a chunk of text costs
a few microseconds.

A writer gives messages, each sent as it is: for SSE one `data:` event, for a WebSocket one frame (see `Wrap`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from inference.errors import SerinusError
from inference.gateway.openai import gathering, problems
from inference.protocol.generation import Event, Piece, Prompt, Usage
from inference.protocol.openai import ChatBody, CompletionBody, StreamOptions

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Wrap:
    """What stands around each message's JSON. done: the last message, b"" for none."""

    before: bytes = b"data: "
    after: bytes = b"\n\n"
    done: bytes = b"data: [DONE]\n\n"


SSE = Wrap()


class Writer(Protocol):
    """Writes one stream. `events` for each event, in order; then `end`, or `failed`."""

    def event(self, event: Event) -> list[bytes]: ...

    def end(self) -> list[bytes]: ...

    def failed(self, error: SerinusError) -> list[bytes]: ...


class _Chunks:
    """What both kinds of completions have in common."""

    kind = ""

    def __init__(self, identity: str, model: str, wrap: Wrap, options: StreamOptions | None) -> None:
        own = {"id": identity, "object": self.kind, "created": int(time.time()), "model": model}
        self._head = wrap.before + _encode(own)[:-1]
        self._choice = _as_format(self._head) + b',"choices":[{"index":%d,'
        self._wrap = wrap
        self._tells = options is not None and bool(options.include_usage)
        self._always = options is not None and bool(options.continuous_usage_stats)
        self._tail = b"}]" + (b',"usage":null' if self._tells else b"") + b"}" + wrap.after
        self._usage = Usage(0, 0)

    def _end_of(self, tail_usage: Usage) -> bytes:
        if not self._always:
            return self._tail
        return b'}],"usage":' + _encode(gathering.usage(tail_usage)) + b"}" + self._wrap.after

    def end(self) -> list[bytes]:
        found = []
        if self._tells:
            told = _encode(gathering.usage(self._usage))
            found.append(b'%b,"choices":[],"usage":%b}%b' % (self._head, told, self._wrap.after))
        return [*found, self._wrap.done] if self._wrap.done else found

    def in_stream(self, error: SerinusError) -> SerinusError:
        """See problems.in_stream."""
        return problems.in_stream(error, self._usage)

    def failed(self, error: SerinusError) -> list[bytes]:
        told = self._wrap.before + problems.body_of(self.in_stream(error)) + self._wrap.after
        return [told, self._wrap.done] if self._wrap.done else [told]


def _as_format(text: bytes) -> bytes:
    """For the left side of `%`: ids, and names of adapters, may hold that sign themselves."""
    return text.replace(b"%", b"%%")


class ChatChunks(_Chunks):
    """`chat.completion.chunk`. Its first chunk of each choice has the role alone. prefix: text that comes first."""

    kind = "chat.completion.chunk"

    def __init__(self, identity: str, body: ChatBody, wrap: Wrap = SSE, prefix: str = "") -> None:
        super().__init__(identity, body.model, wrap, body.stream_options)
        self._begun: set[int] = set()
        self._tokens = bool(body.return_token_ids)
        self._one_call = body.parallel_tool_calls is False
        self._has_logprobs = bool(body.logprobs)
        self._thinks = body.include_reasoning is not False
        self._text = self._choice + b'"delta":{"content":%b},"logprobs":null,"finish_reason":null%b'
        self._prefix = prefix
        self._n = body.n or 1

    def event(self, event: Event) -> list[bytes]:
        if event.usage is not None:
            self._usage = event.usage
        tail = self._end_of(self._usage)
        found: list[bytes] = []
        if not self._begun:
            found += [self._begin(index, tail, event.prompt) for index in range(self._n)]
            if self._prefix:
                found += [self._text % (index, _encode(self._prefix), tail) for index in range(self._n)]
        for piece in event.pieces:
            if piece.text and not (piece.reasoning or piece.tools or piece.logprobs or piece.finish or piece.tokens):
                found.append(self._text % (piece.index, _encode(piece.text), tail))
            else:
                found += self._piece(piece, tail)
        return found

    def _begin(self, index: int, tail: bytes, prompt: Prompt | None) -> bytes:
        self._begun.add(index)
        delta = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null'
        if self._tokens and not index and prompt is not None:
            told = b',"prompt_token_ids":%b,"choices":[{"index":0,' % _encode(prompt.tokens)
            return self._head + told + delta + tail
        return self._choice % index + delta + tail

    def _piece(self, piece: Piece, tail: bytes) -> list[bytes]:
        delta: dict[str, Any] = {}
        if piece.text:
            delta["content"] = piece.text
        if piece.reasoning and self._thinks:
            # vLLM's clients read one or the other
            delta["reasoning_content"] = delta["reasoning"] = piece.reasoning
        calls = [self._call(tool) for tool in piece.tools if not (self._one_call and tool.index)]
        if calls:
            delta["tool_calls"] = calls
        if not (delta or piece.finish or piece.tokens or piece.logprobs):
            return []
        rest: dict[str, Any] = {"delta": delta, "logprobs": None, "finish_reason": piece.finish or None}
        if self._has_logprobs and piece.logprobs:
            rest["logprobs"] = {"content": gathering.chat_logprobs(piece.logprobs), "refusal": None}
        if piece.finish:
            rest["stop_reason"] = piece.stop_reason
        if self._tokens:
            rest["token_ids"] = piece.tokens
        return [self._choice % piece.index + _encode(rest)[1:-1] + tail]

    def _call(self, tool: Any) -> dict[str, Any]:
        if tool.id or tool.name:
            function = {"name": tool.name, "arguments": tool.arguments}
            return {"index": tool.index, "id": tool.id, "type": "function", "function": function}
        return {"index": tool.index, "function": {"arguments": tool.arguments}}


class CompletionChunks(_Chunks):
    """`text_completion` in pieces, of several prompts at once: `of` says how far a prompt's choices are moved."""

    kind = "text_completion"

    def __init__(self, identity: str, body: CompletionBody, wrap: Wrap = SSE) -> None:
        super().__init__(identity, body.model, wrap, body.stream_options)
        self._n = body.n or 1
        self._tokens = bool(body.return_token_ids)
        self._has_logprobs = body.logprobs is not None
        self._offsets: dict[int, int] = {}
        self._usages: dict[int, Usage] = {}
        self._told: set[int] = set()
        self._text = self._choice + b'"text":%b,"logprobs":null,"finish_reason":null%b'

    def event(self, event: Event) -> list[bytes]:
        return self.of(0, event)

    def of(self, number: int, event: Event) -> list[bytes]:
        """The event of prompt `number`."""
        if event.usage is not None:
            self._usages[number] = event.usage
            self._usage = event.usage if len(self._usages) == 1 else gathering.total(list(self._usages.values()))
        tail = self._end_of(self._usage)
        first = number * self._n
        found = []
        for piece in event.pieces:
            index = first + piece.index
            if not (piece.finish or piece.tokens or piece.logprobs or event.prompt):
                if piece.text:
                    found.append(self._text % (index, _encode(piece.text), tail))
                continue
            rest = self._rest(piece, index, event.prompt)
            found.append(self._choice % index + _encode(rest)[1:-1] + tail)
        return found

    def _rest(self, piece: Piece, index: int, prompt: Prompt | None) -> dict[str, Any]:
        rest: dict[str, Any] = {"text": piece.text, "logprobs": None, "finish_reason": piece.finish or None}
        at = self._offsets.get(index, 0)
        if self._has_logprobs:
            tokens = piece.logprobs
            if prompt is not None and prompt.logprobs and index not in self._told:
                self._told.add(index)
                tokens = [*prompt.logprobs, *tokens]
            if tokens:
                rest["logprobs"] = gathering.completion_logprobs(tokens, at)
                self._offsets[index] = at + sum(len(token.text) for token in tokens)
        if piece.finish:
            rest["stop_reason"] = piece.stop_reason
        if self._tokens:
            rest["token_ids"] = piece.tokens
            rest |= {"prompt_token_ids": prompt.tokens} if prompt is not None and prompt.tokens else {}
        return rest
