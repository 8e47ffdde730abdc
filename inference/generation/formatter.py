"""One choice's tokens -> what its caller gets: text, reasoning and tool calls, each piece as soon as it is sure.

The chain: ids -> text without stop strings (`Detokenizer`) -> thoughts apart (`Reasoning`) -> calls apart (`ToolParser`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from inference.generation.detokenizer import Detokenizer
from inference.generation.reasoning import Reasoning
from inference.generation.tools import NoTools, ToolParser
from inference.protocol.generation import ToolPiece


@dataclass(frozen=True, slots=True)
class Pushed:
    """What is new. used: how many of the pushed tokens belong to the answer (those after a stop string do not)."""

    text: str = ""
    reasoning: str = ""
    tools: list[ToolPiece] = field(default_factory=list)
    used: int = 0

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.tools)


class Choice:
    """reasoning, tools: None where nothing of the kind is looked for. reasoning_tokens: tokens of thoughts so far."""

    def __init__(
        self, detokenizer: Detokenizer, *, reasoning: Reasoning | None = None, tools: ToolParser | None = None
    ) -> None:
        self._detokenizer = detokenizer
        self._reasoning = reasoning
        self._tools: ToolParser = tools or NoTools()
        self.reasoning_tokens = 0

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text: the sequence is to be ended."""
        return self._detokenizer.stopped

    @property
    def in_reasoning(self) -> bool:
        """Whether thoughts are going on (a grammar for the answer waits for their end)."""
        return self._reasoning is not None and self._reasoning.inside

    def finish_reason(self, reason: str) -> str:
        """`reason`, or "tool_calls" where the model stopped of itself after a call."""
        return "tool_calls" if reason == "stop" and self._tools.calls else reason

    def push(self, token_ids: Sequence[int], *, final: bool = False) -> Pushed:
        """final: no more will come, so whatever was held back is given out. Once it stopped, nothing is new."""
        text = self._detokenizer.push(token_ids)
        used = self._detokenizer.used
        if final or self.stopped is not None:
            text += self._detokenizer.finish()
        thoughts = ""
        if self._reasoning is not None:
            inside = self._reasoning.inside
            text, thoughts = self._reasoning.push(text)
            self.reasoning_tokens += used if inside or self._reasoning.inside or thoughts else 0
        text, pieces = self._tools.push(text)
        if final:
            text, thoughts, pieces = self._finished(text, thoughts, pieces)
        return Pushed(text, thoughts, pieces, used)

    def _finished(self, text: str, thoughts: str, pieces: list[ToolPiece]) -> tuple[str, str, list[ToolPiece]]:
        if self._reasoning is not None:
            rest, held = self._reasoning.finish()
            more, begun = self._tools.push(rest)
            text, thoughts, pieces = text + more, thoughts + held, [*pieces, *begun]
        rest, last = self._tools.finish()
        return text + rest, thoughts, [*pieces, *last]
