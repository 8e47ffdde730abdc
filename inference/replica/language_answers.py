"""The engine's tokens -> the events that a request's caller gets. Belongs to the event loop; knows no engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inference.generation.formatter import Choice
from inference.generation.requests import Likely, Output
from inference.protocol.generation import NO_LOGPROB, Event, Piece, Prompt, Ranked, TokenLogprob, Usage

if TYPE_CHECKING:
    from inference.replica.language_text import Prepared

Spell = Callable[[int], tuple[str, bytes]]


@dataclass(slots=True, eq=False)
class _Said:
    """One choice so far; what is kept for a request that wants no stream."""

    choice: Choice
    has_begun: bool = False
    has_ended: bool = False
    made: int = 0
    pieces: list[Piece] = field(default_factory=list)


class Answers:
    """All choices of one request. max_tokens: the model's context, which the prompt's facts tell."""

    def __init__(self, prepared: Prepared, spell: Spell, eos: frozenset[int], max_tokens: int) -> None:
        self._asked = prepared.asked
        self._prepared = prepared
        self._spell = spell
        self._eos = eos
        self._max_tokens = max_tokens
        self._said = [_Said(choice) for choice in prepared.choices]
        self._cached = 0
        self._prompt: list[TokenLogprob] = []
        self._is_first = True
        self._new: list[Piece] = []

    @property
    def has_ended(self) -> bool:
        return all(said.has_ended for said in self._said)

    @property
    def made(self) -> int:
        """Tokens of all choices so far."""
        return sum(said.made for said in self._said)

    def take(self, output: Output) -> bool:
        """Takes in what is new. True where the text shows that this choice is over, which the engine cannot see."""
        self._cached = output.cached or self._cached
        if output.prompt_logprobs:
            self._tell_prompt(output)
        said = self._said[output.run.index]
        if said.has_ended or not (output.tokens or output.finish):
            return False
        return self._say(said, output)

    def _say(self, said: _Said, output: Output) -> bool:
        if self._prepared.keeps_token:
            tokens = output.tokens[:-1] if output.stop_token is not None else output.tokens
        else:
            tokens = []
        pushed = said.choice.push(tokens, final=bool(output.finish))
        stopped = said.choice.stopped
        used = pushed.used if stopped is not None else len(tokens)
        if output.stop_token is not None and stopped is None and self._prepared.keeps_token:
            used += 1  # the token that ended it was made too
        said.made += used
        finish = "stop" if stopped is not None else output.finish
        echoed = self._prepared.text if self._asked.echo and not said.has_begun else ""
        reason: str | int | None = stopped
        if stopped is None and output.stop_token is not None and output.stop_token not in self._eos:
            reason = output.stop_token
        piece = Piece(
            output.run.index,
            echoed + pushed.text,
            pushed.reasoning,
            pushed.tools,
            output.tokens[:used] if self._asked.return_token_ids else [],
            self._logprobs(output, used),
            said.choice.finish_reason(finish) if finish else "",
            reason,
        )
        said.has_begun = True
        said.has_ended = bool(finish)
        self._new.append(piece)
        return stopped is not None and not output.finish

    def event(self) -> Event | None:
        """What is to be sent now: everything at the end, or for a stream whatever is new; None for nothing."""
        if not self._asked.stream:
            for piece in self._new:
                self._said[piece.index].pieces.append(piece)
            self._new = []
            if not self.has_ended:
                return None
            pieces = [_whole(said.pieces) for said in self._said]
        else:
            pieces, self._new = [piece for piece in self._new if _is_something(piece)], []
            if not pieces:
                return None
        prompt = self._facts() if self._is_first else None
        self._is_first = False
        return Event(pieces, self.usage(), prompt)

    def usage(self) -> Usage:
        thoughts = sum(said.choice.reasoning_tokens for said in self._said)
        return Usage(len(self._prepared.request.prompt), self.made, self._cached, thoughts)

    def _facts(self) -> Prompt | None:
        if not self._asked.return_token_ids and self._asked.sampling.prompt_logprobs is None:
            return None
        return Prompt(self._prepared.request.prompt, logprobs=self._prompt, max_tokens=self._max_tokens)

    def _tell_prompt(self, output: Output) -> None:
        prompt = self._prepared.request.prompt
        if not self._prompt:
            text, raw = self._spell(prompt[0])
            self._prompt.append(TokenLogprob(prompt[0], text, raw, None))
        for own, likely in zip(output.prompt_logprobs, output.prompt_likely, strict=True):
            self._prompt.append(self._ranked(prompt[len(self._prompt)], own, likely))

    def _logprobs(self, output: Output, used: int) -> list[TokenLogprob]:
        found = zip(output.tokens[:used], output.logprobs, output.likely, strict=False)
        return [self._ranked(token, own, likely) for token, own, likely in found]

    def _ranked(self, token: int, own: float, likely: Likely) -> TokenLogprob:
        top = [Ranked(id_, *self._spell(id_), _finite(value)) for id_, value in zip(*likely, strict=True)]
        return TokenLogprob(token, *self._spell(token), _finite(own), top)


def _finite(value: float) -> float:
    return max(NO_LOGPROB, value)


def _is_something(piece: Piece) -> bool:
    return bool(piece.text or piece.reasoning or piece.tools or piece.tokens or piece.logprobs or piece.finish)


def _whole(pieces: list[Piece]) -> Piece:
    """All pieces of one choice as one. Parts of tool calls stay in their order: whoever reads them puts them together."""
    last = pieces[-1]
    return Piece(
        last.index,
        "".join(piece.text for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        [part for piece in pieces for part in piece.tools],
        [token for piece in pieces for token in piece.tokens],
        [one for piece in pieces for one in piece.logprobs],
        last.finish,
        last.stop_reason,
    )
