"""One tool call's JSON object, read as it comes: {"name": ..., "arguments": {...}}.

The arguments go out as the model writes them, character by character, once the function's name is known. Arguments
that come before the name, or as a string that holds JSON, go out when they are complete.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from enum import Enum

MAX_NAME = 256
_SPACE = " \t\r\n"
_STRUCTURAL = re.compile(r'["\\{}\[\]]')
_ENDS_PRIMITIVE = re.compile(r"[,}\]\s]")
_ARGUMENTS = frozenset({"arguments", "parameters"})


class JsonValue:
    """Finds the end of one JSON value in text that comes piece by piece. It does not check the value."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False
        self._kind = ""

    def end(self, text: str, start: int) -> int | None:
        """The place behind the value, where `text[start:]` is the next part of it; None while it goes on."""
        if not self._kind and start < len(text):
            self._kind = text[start]
        if self._kind and self._kind not in '{["':
            found = _ENDS_PRIMITIVE.search(text, start)
            return found.start() if found else None
        at = start
        while (place := self._next(text, at)) is not None:
            at = place + 1
            if self._depth <= 0 and not self._in_string and not self._escaped:
                return at
        return None

    def _next(self, text: str, at: int) -> int | None:
        """Goes over the next structural character, and says where it is."""
        if self._escaped:
            if at >= len(text):
                return None
            self._escaped = False
            at += 1
        found = _STRUCTURAL.search(text, at)
        if not found:
            return None
        character = found.group()
        if character == "\\":
            self._escaped = self._in_string
        elif character == '"':
            self._in_string = not self._in_string
        elif not self._in_string:
            self._depth += 1 if character in "{[" else -1
        return found.start()


class _At(Enum):
    OPEN = "open"
    KEY = "key"
    COLON = "colon"
    VALUE = "value"
    COMMA = "comma"
    DONE = "done"
    BAD = "bad"


class CallReader:
    """names: the functions that there are; a call of another is malformed (empty: any name will do).

    name: once it is known. began: arguments went out. `done`, `bad`: how it ended; after `bad` no more will come.
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = names
        self._at = _At.OPEN
        self._text = ""  # what is not yet understood
        self._key = ""
        self._value = JsonValue()
        self._streaming: bool | None = None  # None: the value has not begun
        self._collected: list[str] = []
        self._arguments: str | None = None  # complete, and waiting for the name
        self._has_arguments = False
        self.name = ""
        self.began = False

    @property
    def done(self) -> bool:
        return self._at is _At.DONE

    @property
    def bad(self) -> bool:
        return self._at is _At.BAD

    def push(self, text: str) -> tuple[str, str]:
        """(new part of the arguments, what is behind it once it is done, or went wrong after a part)."""
        self._text += text
        parts: list[str] = []
        while self._at in _READERS:
            before = self._at, len(self._text)
            parts.append(self._step())
            if (self._at, len(self._text)) == before:
                break
        out = "".join(parts)
        self.began = self.began or bool(out)
        rest = ""
        if self.done or (self.bad and self.began):
            rest, self._text = self._text, ""
        return out, rest

    def _step(self) -> str:
        if self._at is not _At.VALUE or self._streaming is None:
            self._text = self._text.lstrip(_SPACE)
        return _READERS[self._at](self) if self._text else ""

    def _take(self, expected: str, then: _At) -> str:
        if self._text[0] == expected:
            self._text, self._at = self._text[1:], then
        else:
            self._at = _At.BAD
        return ""

    def _read_open(self) -> str:
        return self._take("{", _At.KEY)

    def _read_colon(self) -> str:
        self._value, self._streaming, self._collected = JsonValue(), None, []
        return self._take(":", _At.VALUE)

    def _read_key(self) -> str:
        if self._text[0] != '"':
            self._at = _At.BAD
            return ""
        end = JsonValue().end(self._text, 0)
        if end is None:
            self._at = _At.BAD if len(self._text) > MAX_NAME else _At.KEY
            return ""
        self._key = str(_loaded(self._text[:end]))
        self._text, self._at = self._text[end:], _At.COLON
        return ""

    def _read_value(self) -> str:
        if self._streaming is None:
            self._streaming = self._key in _ARGUMENTS and bool(self.name) and self._text[0] == "{"
            if self._key in _ARGUMENTS:
                if self._has_arguments:
                    self._at = _At.BAD
                    return ""
                self._has_arguments = True
        end = self._value.end(self._text, 0)
        cut = len(self._text) if end is None else end
        part, self._text = self._text[:cut], self._text[cut:]
        if not self._streaming:
            self._collected.append(part)
        if end is None:
            too_long = self._key == "name" and sum(map(len, self._collected)) > MAX_NAME
            self._at = _At.BAD if too_long else _At.VALUE
            return part if self._streaming else ""
        self._at = _At.COMMA
        return part if self._streaming else self._ended("".join(self._collected))

    def _ended(self, raw: str) -> str:
        if self._key == "name":
            return self._ended_name(_loaded(raw))
        return self._ended_arguments(raw) if self._key in _ARGUMENTS else ""

    def _ended_name(self, name: object) -> str:
        if self.name or not isinstance(name, str) or not name or (self._names and name not in self._names):
            self._at = _At.BAD
            return ""
        self.name = name
        held, self._arguments = self._arguments, None
        return held or ""

    def _ended_arguments(self, raw: str) -> str:
        value = _loaded(raw)
        if isinstance(value, str):
            raw, value = value, _loaded(value)
        elif raw == "null":
            raw, value = "{}", {}
        if not isinstance(value, dict):
            self._at = _At.BAD
            return ""
        if self.name:
            return raw
        self._arguments = raw
        return ""

    def _read_comma(self) -> str:
        if self._text[0] == ",":
            return self._take(",", _At.KEY)
        self._take("}", _At.DONE)
        if self.done and not self._has_arguments and self.name in self._names:
            return "{}"
        if self.done and not (self.name and self._has_arguments):
            self._at = _At.BAD
        return ""


_READERS: dict[_At, Callable[[CallReader], str]] = {
    _At.OPEN: CallReader._read_open,  # noqa: SLF001  # its own table
    _At.KEY: CallReader._read_key,  # noqa: SLF001
    _At.COLON: CallReader._read_colon,  # noqa: SLF001
    _At.VALUE: CallReader._read_value,  # noqa: SLF001
    _At.COMMA: CallReader._read_comma,  # noqa: SLF001
}


def _loaded(raw: str) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None
