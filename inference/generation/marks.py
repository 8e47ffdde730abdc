"""Finding marks (`<think>`, `<tool_call>`) in text that comes piece by piece."""

from __future__ import annotations

from collections.abc import Sequence


def first_mark(text: str, marks: Sequence[str]) -> tuple[int, str] | None:
    """Where the earliest of these marks begins, and which it is (of two at one place, the longer)."""
    found = [(at, -len(mark), mark) for mark in marks if (at := text.find(mark)) >= 0]
    if not found:
        return None
    at, _, mark = min(found)
    return at, mark


def begun_mark(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of these marks."""
    for size in range(min(len(text), max(map(len, marks), default=1) - 1), 0, -1):
        if any(len(mark) > size and mark.startswith(text[-size:]) for mark in marks):
            return size
    return 0


def waiting(text: str, marks: Sequence[str]) -> int:
    """As `begun_mark`, with the white space before it, which is no text where the mark follows."""
    begun = begun_mark(text, marks)
    return len(text) - len(text[: len(text) - begun].rstrip())
