"""Grammars that force tool calls: the family's own syntax around arguments that the function's schema describes.

For `tool_choice` "required" and a named function. A model whose family has no syntax of its own is made to write
Hermes's: its calls are then read by that parser (`forced_parser`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from inference.errors import InvalidInput
from inference.generation.grammar import WHITESPACE
from inference.generation.tools import (
    HERMES_CLOSE,
    HERMES_OPEN,
    MISTRAL_ARGS,
    MISTRAL_OPEN,
    function_of,
)
from inference.generation.vocabulary import Vocabulary
from inference.protocol.generation import Structure

MAX_FORCED_CALLS = 16
NAMED = "function:"


def forced_parser(parser: str) -> str:
    """Which parser reads forced calls."""
    return "hermes" if parser == "none" else parser


def chosen_tools(tools: Sequence[dict[str, Any]], choice: str) -> list[dict[str, Any]]:
    """The tools that a forcing choice allows; none where it does not force. choice: as `Chat.tool_choice`.

    Raises InvalidInput for a choice that is not known, and one that no tool can meet.
    """
    if choice in {"auto", "none"}:
        return []
    if choice == "required":
        if not tools:
            raise InvalidInput('tool_choice "required" needs tools')
        return list(tools)
    name = choice.removeprefix(NAMED)
    chosen = [tool for tool in tools if choice.startswith(NAMED) and function_of(tool)["name"] == name]
    if not chosen:
        raise InvalidInput(f"tool_choice names {name!r}, which is not one of the tools")
    return chosen[:1]


def tool_structure(
    parser: str, tools: Sequence[dict[str, Any]], choice: str, vocabulary: Vocabulary, *, parallel: bool = True
) -> Structure | None:
    """The grammar that `choice` calls for; None where nothing is forced. A named function is called once; with
    "required" at least once, and more often only if `parallel`. Raises InvalidInput as `chosen_tools` does.
    """
    chosen = chosen_tools(tools, choice)
    if not chosen:
        return None
    functions = [function_of(tool) for tool in chosen]
    most = MAX_FORCED_CALLS if parallel and choice == "required" else 1
    rules = _SYNTAX[forced_parser(parser)](functions, most, _Marks(vocabulary))
    schemas = [f"args_{at}: %json {json.dumps(_schema(function))}" for at, function in enumerate(functions)]
    return Structure(grammar="\n".join([*rules, *schemas]))


class _Marks:
    """A mark in a grammar: its token where it is one (llguidance takes added tokens for marks, not text), else its text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def of(self, mark: str) -> str:
        token = self._vocabulary.backend.token_to_id(mark)
        return json.dumps(mark) if token is None else f"<[{token}]>"

    def has(self, mark: str) -> bool:
        return self._vocabulary.backend.token_to_id(mark) is not None


def _schema(function: dict[str, Any]) -> dict[str, Any]:
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(schema, dict):
        raise InvalidInput(f"the parameters of {function['name']!r} are not a JSON schema")
    return {"x-guidance": WHITESPACE, "type": "object", **schema}


def _object(at: int, function: dict[str, Any], key: str) -> str:
    head = json.dumps(f'{{"name": {json.dumps(function["name"])}, "{key}": ')
    return f'{head} args_{at} "}}"'


def _more(separator: str, most: int) -> str:
    return f" ({json.dumps(separator)} call){{0,{most - 1}}}" if most > 1 else ""


def _hermes(functions: list[dict[str, Any]], most: int, marks: _Marks) -> list[str]:
    objects = " | ".join(f"call_{at}" for at in range(len(functions)))
    return [
        f"start: call{_more(chr(10), most)}",
        f'call: {marks.of(HERMES_OPEN)} "\\n" ({objects}) "\\n" {marks.of(HERMES_CLOSE)}',
        *(f"call_{at}: {_object(at, function, 'arguments')}" for at, function in enumerate(functions)),
    ]


def _llama3(functions: list[dict[str, Any]], most: int, _marks: _Marks) -> list[str]:
    objects = " | ".join(f"call_{at}" for at in range(len(functions)))
    return [
        f"start: call{_more('; ', most)}",
        f"call: {objects}",
        *(f"call_{at}: {_object(at, function, 'parameters')}" for at, function in enumerate(functions)),
    ]


def _mistral(functions: list[dict[str, Any]], most: int, marks: _Marks) -> list[str]:
    choices = " | ".join(f"call_{at}" for at in range(len(functions)))
    if marks.has(MISTRAL_ARGS):
        again = f"{{1,{most}}}" if most > 1 else ""
        return [
            f"start: call{again}",
            f"call: {marks.of(MISTRAL_OPEN)} ({choices})",
            *(
                f"call_{at}: {json.dumps(function['name'])} {marks.of(MISTRAL_ARGS)} args_{at}"
                for at, function in enumerate(functions)
            ),
        ]
    return [
        f'start: {marks.of(MISTRAL_OPEN)} "[" call{_more(", ", most)} "]"',
        f"call: {choices}",
        *(f"call_{at}: {_object(at, function, 'arguments')}" for at, function in enumerate(functions)),
    ]


_SYNTAX: dict[str, Callable[[list[dict[str, Any]], int, _Marks], list[str]]] = {
    "hermes": _hermes,
    "llama3": _llama3,
    "mistral": _mistral,
}
