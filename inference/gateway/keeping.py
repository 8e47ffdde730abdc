"""An answer as a whole, put together from the parts that a door sent on, and a request's begin in words.

Bounded: what is larger than its limit is not kept, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from inference.gateway.calls import Call
from inference.protocol import excerpts, generation
from inference.protocol.compare import Output
from inference.protocol.generation import Event, Generate
from inference.protocol.messages import Answer
from inference.protocol.oip import Signature


@dataclass(slots=True)
class Kept:
    """The parts of one answer, copied. is_whole: they were not more than `limit_bytes`, and are all here."""

    limit_bytes: int
    parts: list[tuple[Answer, bytes]] = field(default_factory=list)
    size_bytes: int = 0
    is_whole: bool = True

    def add(self, answer: Answer, body: memoryview) -> None:
        if not answer.tensors or not self.is_whole:
            return
        self.size_bytes += len(body)
        if self.size_bytes > self.limit_bytes:
            self.is_whole, self.parts = False, []
            return
        self.parts.append((answer, bytes(body)))

    def outputs(self, *, is_language: bool) -> list[Output] | None:
        """The answer's tensors. A language model's are `text` and, where it told them, `token_ids`, one row a choice.

        None where the answer was too large, has no tensors, or has several parts that are no text.
        """
        if not self.is_whole or not self.parts:
            return None
        if is_language:
            return _said([body for answer, body in self.parts], self.parts[0][0].tensors[0].name)
        return _cut(*self.parts[0]) if len(self.parts) == 1 else None


def is_language(signature: Signature) -> bool:
    return signature.platform == generation.PLATFORM


def asked_of(call: Call) -> generation.Asked | None:
    """What an OpenAI door asks of a language model; None where the call is no such request, or is unreadable."""
    if len(call.body) != 1 or call.tensors[0].name != generation.REQUEST:
        return None
    try:
        found: generation.Asked = generation.decode_asked(memoryview(call.body[0])[4:])
    except msgspec.MsgspecError:
        return None
    return found


def is_greedy(call: Call) -> bool:
    """Whether a language model must give the same answer again: nothing is drawn by chance."""
    asked = asked_of(call)
    if asked is None:
        return call.parameters.get("temperature") in {0, "0", "0.0"}
    return not isinstance(asked, Generate) or asked.sampling.temperature == 0


def excerpt(call: Call, most_chars: int) -> str:
    """The begin of a request's inputs, see protocol.excerpts."""
    return excerpts.excerpt(call.tensors, call.body, most_chars)


def _cut(answer: Answer, body: bytes) -> list[Output]:
    view, at, found = memoryview(body), 0, []
    for tensor in answer.tensors:
        found.append(Output(tensor.name, tensor.datatype, tensor.shape, view[at : at + tensor.size_bytes]))
        at += tensor.size_bytes
    return found


def _said(parts: list[bytes], name: str) -> list[Output]:
    if name != generation.EVENT:
        return [_text("text", ["".join(_plain(part) for part in parts)])]
    said: dict[int, list[str]] = {}
    ids: dict[int, list[int]] = {}
    for part in parts:
        for index, text, tokens in _pieces(part):
            said.setdefault(index, []).append(text)
            ids.setdefault(index, []).extend(tokens)
    found = [_text("text", ["".join(said[index]) for index in sorted(said)])]
    if any(ids.values()):
        longest = max(map(len, ids.values()))
        rows = [ids[index] + [-1] * (longest - len(ids[index])) for index in sorted(ids)]
        data = b"".join(token.to_bytes(8, "little", signed=True) for row in rows for token in row)
        found.append(Output("token_ids", "INT64", [len(rows), longest], data))
    return found


def _plain(part: bytes) -> str:
    return part[4:].decode("utf-8", "replace")


def _pieces(part: bytes) -> list[tuple[int, str, list[int]]]:
    """(choice, its new text with reasoning and tool calls, its new tokens) of one event; none of an unreadable one."""
    try:
        event: Event = generation.decode_event(part[4:])
    except msgspec.MsgspecError:
        return []
    found = [
        (
            piece.index,
            piece.reasoning + piece.text + "".join(f"{tool.name}{tool.arguments}" for tool in piece.tools),
            piece.tokens,
        )
        for piece in event.pieces
    ]
    if event.prompt is not None and not event.pieces:
        found.append((0, event.prompt.text, event.prompt.tokens))
    return found


def _text(name: str, values: list[str]) -> Output:
    raw = [value.encode("utf-8", "replace") for value in values]
    return Output(name, "BYTES", [len(raw)], b"".join(len(each).to_bytes(4, "little") + each for each in raw))
