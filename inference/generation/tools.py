"""Tool calls in a model's text, by the manner of its family, as they come; and the grammars that force them.

hermes (also Qwen): `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them.
llama3: the answer begins with `{"name": ..., "parameters": {...}}`, perhaps after `<|python_tag|>`; more after `;`.
mistral: `[TOOL_CALLS]` and a list of such objects, or (newer) `[TOOL_CALLS]name[ARGS]{...}` for each.

Text that turns out to be no call is given as text, marks and all, unless a part of the call went out already: what was
sent stays, and the rest of it is dropped.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from inference.errors import InvalidInput
from inference.generation.calls import MAX_NAME, CallReader, JsonValue
from inference.generation.marks import first_mark, waiting
from inference.protocol.generation import ToolPiece

HERMES_OPEN, HERMES_CLOSE = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"
MISTRAL_OPEN, MISTRAL_ARGS, MISTRAL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
MARKS: dict[str, tuple[str, ...]] = {
    "none": (),
    "hermes": (HERMES_OPEN, HERMES_CLOSE),
    "llama3": (PYTHON_TAG,),
    "mistral": (MISTRAL_OPEN, MISTRAL_ARGS, MISTRAL_ID),
}
MAX_CALLS = 64
_SPACE = " \t\r\n"
_NAME = re.compile(r"[\w.:/-]{1,256}")


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def short_call_id() -> str:
    """Mistral's templates take nothing but nine letters and digits."""
    return secrets.token_hex(5)[:9]


class ToolParser(Protocol):
    """calls: how many were begun."""

    calls: int

    def push(self, text: str) -> tuple[str, list[ToolPiece]]:
        """(text that is no call, parts of calls) that are new."""
        ...

    def finish(self) -> tuple[str, list[ToolPiece]]:
        """The rest: what was begun and is no call is text."""
        ...


class NoTools:
    """Everything is text."""

    calls = 0

    def push(self, text: str) -> tuple[str, list[ToolPiece]]:
        return text, []

    def finish(self) -> tuple[str, list[ToolPiece]]:
        return "", []


class _Parser:
    """The machinery of all families. `_state` understands a bit more of `_held`, and says whether to go on."""

    def __init__(self, names: Collection[str] = (), new_id: Callable[[], str] = call_id) -> None:
        self._names, self._new_id = frozenset(names), new_id
        self._held = ""  # not understood yet
        self._mark = ""  # what began the call that is being read,
        self._body = ""  # and what of it was read: both are text if it is none
        self._reader = CallReader()
        self._text: list[str] = []
        self._pieces: list[ToolPiece] = []
        self._state: Callable[[], bool] = self._begin
        self.calls = 0

    def push(self, text: str) -> tuple[str, list[ToolPiece]]:
        self._held += text
        while self._state():
            pass
        return self._taken()

    def finish(self) -> tuple[str, list[ToolPiece]]:
        rest = "" if self._reader.began and self._in_call() else self._mark + self._body + self._held
        if not self.calls or rest.strip(_SPACE + ";"):
            self._text.append(rest)
        self._held = self._mark = self._body = ""
        self._state = self._drop
        return self._taken()

    def _begin(self) -> bool:
        raise NotImplementedError

    def _after_call(self) -> bool:
        raise NotImplementedError

    def _broken(self) -> bool:
        """What follows a call that went wrong after a part of it went out."""
        return self._drop()

    def _in_call(self) -> bool:
        return self._state in {self._call, self._drop}

    def _taken(self) -> tuple[str, list[ToolPiece]]:
        taken = "".join(self._text), self._pieces
        self._text, self._pieces = [], []
        return taken

    def _add(self, name: str, arguments: str, *, first: bool) -> None:
        if first:
            self.calls += 1
            self._pieces.append(ToolPiece(self.calls - 1, self._new_id(), name, arguments))
        elif arguments:
            self._pieces.append(ToolPiece(self.calls - 1, arguments=arguments))

    def _seek(self, mark: str, then: Callable[[], bool]) -> bool:
        """Gives text up to the mark that begins a call."""
        found = first_mark(self._held, [mark]) if self.calls < MAX_CALLS else None
        if found is None:
            keep = len(self._held) - waiting(self._held, [mark])
            self._text.append(self._held[:keep])
            self._held = self._held[keep:]
            return False
        before, self._held = self._held[: found[0]], self._held[found[0] + len(mark) :]
        text = before.rstrip()
        self._text.append(text)
        self._mark, self._body = before[len(text) :] + mark, ""
        self._reader, self._state = CallReader(self._names), then
        return True

    def _call(self) -> bool:
        """Reads a call's object."""
        reader, began, text = self._reader, self._reader.began, self._held
        arguments, self._held = reader.push(text)
        if arguments:
            self._add(reader.name, arguments, first=not began)
        self._body = "" if reader.began else self._body + text
        if reader.bad:
            self._state = self._broken if reader.began else self._no_call()
            return True
        if reader.done:
            self._mark, self._state = "", self._after_call
        return reader.done

    def _no_call(self) -> Callable[[], bool]:
        """What was read is text; what follows the mark is looked at anew."""
        self._text.append(self._mark)
        self._held = self._body or self._held
        self._mark = self._body = ""
        return self._begin

    def _drop(self) -> bool:
        self._held = ""
        return False

    def _pass(self) -> bool:
        self._text.append(self._held)
        self._held = ""
        return False


class HermesTools(_Parser):
    """`<tool_call>{...}</tool_call>`"""

    def _begin(self) -> bool:
        return self._seek(HERMES_OPEN, self._call)

    def _after_call(self) -> bool:
        body = self._held.lstrip(_SPACE)
        if HERMES_CLOSE.startswith(body) and body != HERMES_CLOSE:
            return False
        if body.startswith(HERMES_CLOSE):
            self._held = body[len(HERMES_CLOSE) :]
        self._state = self._begin
        return True

    def _broken(self) -> bool:
        found = first_mark(self._held, [HERMES_CLOSE])
        if found is None:
            self._held = self._held[-len(HERMES_CLOSE) :]
            return False
        self._held, self._state = self._held[found[0] + len(HERMES_CLOSE) :], self._begin
        self._mark = ""
        return True

    def _in_call(self) -> bool:
        return self._state in {self._call, self._after_call, self._broken}


class Llama3Tools(_Parser):
    """The answer is a call, or calls, or it is text."""

    def _begin(self) -> bool:
        body = self._held.lstrip(_SPACE if not self.calls else _SPACE + ";")
        space = self._held[: len(self._held) - len(body)]
        if PYTHON_TAG.startswith(body) and body != PYTHON_TAG:
            return False
        if not body.startswith((PYTHON_TAG, "{")) or self.calls >= MAX_CALLS:
            self._state = self._pass
            return True
        mark = PYTHON_TAG if body.startswith(PYTHON_TAG) else ""
        self._mark, self._body, self._held = space + mark, "", body[len(mark) :]
        self._reader, self._state = CallReader(self._names), self._call
        return True

    def _no_call(self) -> Callable[[], bool]:
        super()._no_call()
        return self._pass

    def _after_call(self) -> bool:
        self._state = self._begin
        return True


class MistralTools(_Parser):
    """`[TOOL_CALLS]` and a list, or `[TOOL_CALLS]name[ARGS]{...}`"""

    def _begin(self) -> bool:
        return self._seek(MISTRAL_OPEN, self._form)

    def _form(self) -> bool:
        body = self._held.lstrip(_SPACE)
        if not body:
            return False
        if not body.startswith("["):
            self._state = self._named
            return True
        self._mark += self._held[: len(self._held) - len(body) + 1]
        self._held, self._state = body[1:], self._item
        return True

    def _item(self) -> bool:
        body = self._held.lstrip(_SPACE + ",")
        if not body:
            return False
        if body.startswith("{"):
            self._mark += self._held[: len(self._held) - len(body)]
            self._held, self._state = body, self._call
            self._reader = CallReader(self._names)
        elif body.startswith("]") and self.calls:
            self._held, self._mark, self._state = body[1:], "", self._begin
        else:
            self._state = self._no_call() if self._mark else self._drop
        return True

    def _after_call(self) -> bool:
        self._state = self._item
        return True

    def _named(self) -> bool:
        found = first_mark(self._held, ["{"])
        if found is None and len(self._held) <= 2 * MAX_NAME:
            return False
        head = self._held[: found[0]] if found else ""
        name = head.split(MISTRAL_ARGS)[0].split(MISTRAL_ID)[0].strip()
        if not name or (self._names and name not in self._names):
            self._state = self._no_call()
            return True
        self._held, self._mark = self._held[len(head) :], ""
        self._value, self._state = JsonValue(), self._arguments
        self._add(name, "", first=True)
        return True

    def _arguments(self) -> bool:
        end = self._value.end(self._held, 0)
        cut = len(self._held) if end is None else end
        self._add("", self._held[:cut], first=False)
        self._held = self._held[cut:]
        if end is not None:
            self._state = self._begin
        return end is not None


_PARSERS: dict[str, type[_Parser]] = {"hermes": HermesTools, "llama3": Llama3Tools, "mistral": MistralTools}
_FAMILIES = {"qwen2": "hermes", "qwen3": "hermes", "qwen2_moe": "hermes", "qwen3_moe": "hermes", "smollm3": "hermes"}


def tool_parser_for(family: str, template: str, setting: str = "auto") -> str:
    """The parser's name: "none", "hermes", "llama3" or "mistral". family: `LanguageFacts.family`; template: its text.

    The template tells best, for it shows the model how to call; the family only where the template speaks of tools.
    """
    if setting != "auto":
        return setting
    if MISTRAL_OPEN in template:
        return "mistral"
    if HERMES_OPEN in template:
        return "hermes"
    if PYTHON_TAG in template or ("ipython" in template and '"parameters"' in template):
        return "llama3"
    return _FAMILIES.get(family, "none") if "tools" in template else "none"


def tool_parser(parser: str, names: Collection[str] = (), new_id: Callable[[], str] | None = None) -> ToolParser:
    """A new parser for one choice. names: the functions of the request (a call of another is text)."""
    if parser not in _PARSERS:
        return NoTools()
    default = short_call_id if parser == "mistral" else call_id
    return _PARSERS[parser](names, new_id or default)


def names_of(tools: Iterable[dict[str, Any]]) -> list[str]:
    """The functions' names. Raises InvalidInput for a tool that is none of OpenAI's function tools."""
    return [str(function_of(tool)["name"]) for tool in tools]


def function_of(tool: Any) -> dict[str, Any]:
    """A tool's function: its name, and perhaps parameters (a JSON schema). Raises InvalidInput."""
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type", "function") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(
            'a tool is {"type": "function", "function": {"name": ..., "parameters": ...}}; a name has 1 to 256 letters, '
            "digits, and _ . : - /"
        )
    return function


def mark_ids(parser: str, backend: Any) -> frozenset[int]:
    """Ids of the marks that are tokens: the detokenizer must keep them, special or not."""
    found = (backend.token_to_id(mark) for mark in MARKS.get(parser, ()))
    return frozenset(one for one in found if one is not None)
