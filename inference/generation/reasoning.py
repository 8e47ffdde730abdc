"""The thoughts of a model that thinks aloud, `<think>...</think>`, apart from its answer, as they come.

Thoughts stand before the answer: a mark that comes later is text. White space around the marks belongs to neither.
"""

from __future__ import annotations

from enum import Enum

from inference.generation.marks import first_mark, waiting

OPEN, CLOSE = "<think>", "</think>"


class _Place(Enum):
    BEFORE = "before"
    INSIDE = "inside"
    AFTER = "after"


class Reasoning:
    """opened: the prompt itself ended with the opening mark (see `opens_reasoning`)."""

    def __init__(self, *, opened: bool = False) -> None:
        self._place = _Place.INSIDE if opened else _Place.BEFORE
        self._held = ""
        self._began = False  # whether anything was given out at this place

    @property
    def inside(self) -> bool:
        return self._place is _Place.INSIDE

    def push(self, text: str) -> tuple[str, str]:
        """(text, reasoning) that are new."""
        self._held += text
        reasoning = ""
        if self._place is _Place.BEFORE:
            self._look_for_open()
        if self._place is _Place.INSIDE:
            reasoning = self._inside()
        return (self._after() if self._place is _Place.AFTER else ""), reasoning

    def finish(self) -> tuple[str, str]:
        """The rest that was held back for a mark."""
        held, self._held = self._held, ""
        return ("", held) if self._place is _Place.INSIDE else (held, "")

    def _look_for_open(self) -> None:
        body = self._held.lstrip()
        if body.startswith(OPEN):
            self._held, self._place = body[len(OPEN) :], _Place.INSIDE
        elif not OPEN.startswith(body):
            self._place, self._began = _Place.AFTER, True

    def _inside(self) -> str:
        if not self._began:
            self._held = self._held.lstrip()
        if found := first_mark(self._held, [CLOSE]):
            given, self._held = self._held[: found[0]].rstrip(), self._held[found[0] + len(CLOSE) :]
            self._place, self._began = _Place.AFTER, False
            return given
        keep = len(self._held) - waiting(self._held, [CLOSE])
        given, self._held = self._held[:keep], self._held[keep:]
        self._began = self._began or bool(given)
        return given

    def _after(self) -> str:
        given, self._held = self._held if self._began else self._held.lstrip(), ""
        self._began = self._began or bool(given)
        return given


def opens_reasoning(prompt: str) -> bool:
    """Whether a chat's prompt leaves the model in the middle of its thoughts."""
    return prompt.rstrip().endswith(OPEN)


def reasoning_parser_for(setting: str, template: str) -> str:
    """The parser's name, "think" or "none". `setting` is GenerationSettings.reasoning_parser; "auto" goes by the template's text."""
    if setting != "auto":
        return setting
    return "think" if OPEN in template or CLOSE in template else "none"
