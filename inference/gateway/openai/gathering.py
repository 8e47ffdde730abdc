"""What a language model's events come to: the choices of a whole answer, and numbers in OpenAI's form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from inference.gateway.openai.sampling import logprob_of
from inference.protocol.generation import NO_LOGPROB, Event, Prompt, Ranked, TokenLogprob, ToolPiece, Usage


@dataclass(slots=True)
class Call:
    """A tool call as far as it has come."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def add(self, piece: ToolPiece) -> None:
        self.id = self.id or piece.id
        self.name = self.name or piece.name
        self.arguments.append(piece.arguments)

    def shown(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": "".join(self.arguments)},
        }


@dataclass(slots=True)
class Choice:
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, Call] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str = ""
    stop_reason: str | int | None = None

    def mean_logprob(self) -> float:
        """By which the best of several are chosen."""
        found = [logprob_of(one.logprob, NO_LOGPROB) for one in self.logprobs]
        return sum(found) / len(found) if found else NO_LOGPROB


class Gathered:
    """Every event of one request, put together. one_call: of several tool calls only the first counts."""

    def __init__(self, *, one_call: bool = False) -> None:
        self.choices: dict[int, Choice] = {}
        self.usage = Usage(0, 0)
        self.prompt = Prompt()
        self._one_call = one_call

    def add(self, event: Event) -> None:
        if event.usage is not None:
            self.usage = event.usage
        if event.prompt is not None:
            self.prompt = event.prompt
        for piece in event.pieces:
            choice = self.choices.setdefault(piece.index, Choice())
            choice.text.append(piece.text)
            choice.reasoning.append(piece.reasoning)
            for tool in piece.tools:
                if not (self._one_call and tool.index):
                    choice.calls.setdefault(tool.index, Call()).add(tool)
            choice.tokens += piece.tokens
            choice.logprobs += piece.logprobs
            if piece.finish:
                choice.finish, choice.stop_reason = piece.finish, piece.stop_reason

    def ordered(self) -> list[Choice]:
        return [self.choices[index] for index in sorted(self.choices)]


def usage(found: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": found.prompt_tokens,
        "completion_tokens": found.completion_tokens,
        "total_tokens": found.prompt_tokens + found.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": found.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": found.reasoning_tokens},
    }


def total(parts: list[Usage]) -> Usage:
    """The sums over several prompts."""
    return Usage(
        sum(one.prompt_tokens for one in parts),
        sum(one.completion_tokens for one in parts),
        sum(one.cached_tokens for one in parts),
        sum(one.reasoning_tokens for one in parts),
    )


def _of_chat(token: TokenLogprob | Ranked) -> dict[str, Any]:
    return {"token": token.text, "logprob": logprob_of(token.logprob, NO_LOGPROB), "bytes": list(token.raw)}


def chat_logprobs(found: list[TokenLogprob]) -> list[dict[str, Any]]:
    """`logprobs.content` of chat completions."""
    return [_of_chat(token) | {"top_logprobs": [_of_chat(one) for one in token.top]} for token in found]


def completion_logprobs(found: list[TokenLogprob], at: int) -> dict[str, Any]:
    """`logprobs` of completions. at: where in the text the first token begins, in characters."""
    offsets = []
    for token in found:
        offsets.append(at)
        at += len(token.text)
    return {
        "tokens": [token.text for token in found],
        "token_logprobs": [None if t.logprob is None else logprob_of(t.logprob, NO_LOGPROB) for t in found],
        "top_logprobs": [
            None
            if token.logprob is None
            else {one.text: logprob_of(one.logprob, NO_LOGPROB) for one in token.top}
            | {token.text: logprob_of(token.logprob, NO_LOGPROB)}
            for token in found
        ],
        "text_offset": offsets,
    }


def prompt_logprobs(found: list[TokenLogprob]) -> list[dict[str, Any] | None]:
    """As vLLM has it: for each token of the prompt its logprob and the likeliest ones' by id; None for the first."""
    return [None if token.logprob is None else _by_id(token) for token in found]


def _by_id(token: TokenLogprob) -> dict[str, Any]:
    ranked = {one.token: rank for rank, one in enumerate(token.top, 1)}
    told: dict[int, tuple[float | None, str]] = {one.token: (one.logprob, one.text) for one in token.top}
    told[token.token] = (token.logprob, token.text)
    return {
        str(identity): {
            "logprob": logprob_of(logprob, NO_LOGPROB),
            "rank": ranked.get(identity),
            "decoded_token": text,
        }
        for identity, (logprob, text) in told.items()
    }
