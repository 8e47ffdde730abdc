"""The grammar of shape expressions. torch hands them to sympy.sympify, which evaluates Python; only these pass.

An expression is a whole number, a symbol (s0, u3, Symbol('s0', positive=True, integer=True)), one of a few functions
of expressions, or a chain of them joined by + - * // / %. Nothing else is an expression, and the size is bounded.
"""

from __future__ import annotations

import re

MAX_LENGTH = 2000
MAX_TOKENS = 600
MAX_DEPTH = 24
MAX_POWERS = 4
MAX_EXPONENT = 8
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d{1,18})(?![\w.])|(?P<name>[A-Za-z]+\d*)|(?P<string>'[a-z]{1,4}\d{1,6}')|(?P<mark>//|[-+*/%(),=]))"
)
_SYMBOL = re.compile(r"[a-z]{1,4}\d{1,6}")
_FUNCTIONS = {
    "Add", "Mul", "Min", "Max", "FloorDiv", "CleanDiv", "CeilDiv", "Mod", "PythonMod", "ModularIndexing", "IntTrueDiv",
    "ToFloat", "TruncToInt", "CeilToInt", "FloorToInt", "Where", "Identity", "Equality", "Unequality", "GreaterThan",
    "LessThan", "StrictGreaterThan", "StrictLessThan", "Eq", "Ne", "Ge", "Le", "Gt", "Lt", "And", "Or", "Not", "Rational",
}  # fmt: skip
_ASSUMPTIONS = {"positive", "integer", "nonnegative", "finite", "real"}
_OPERATORS = {"+", "-", "*", "/", "//", "%"}


class NotAllowed(ValueError):
    """The text is no shape expression of ours."""


def check(text: str) -> None:
    """Raises NotAllowed."""
    reader = _Reader(_tokens(text))
    reader.expression(0)
    if reader.left():
        raise NotAllowed


def symbol_of(text: str) -> str:
    """The symbol's name when a (checked) expression is one bare symbol, else ""."""
    found = re.fullmatch(r"(?:Symbol\('([a-z]{1,4}\d{1,6})'(?:, [a-z]+=True)*\)|([a-z]{1,4}\d{1,6}))", text.strip())
    return (found.group(1) or found.group(2)) if found else ""


def _tokens(text: str) -> list[tuple[str, str]]:
    if len(text) > MAX_LENGTH or not text.isascii():
        raise NotAllowed
    text = text.rstrip()
    tokens: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found or len(tokens) >= MAX_TOKENS or not found.lastgroup:
            raise NotAllowed
        tokens.append((found.lastgroup, found[found.lastgroup]))
        at = found.end()
    return tokens


class _Reader:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.at = 0
        self.powers = 0

    def left(self) -> bool:
        return self.at < len(self.tokens)

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.left() else ("", "")

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.at += 1
        return token

    def expect(self, mark: str) -> None:
        if self.take() != ("mark", mark):
            raise NotAllowed

    def expression(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise NotAllowed
        self.operand(depth)
        while self.peek()[0] == "mark" and self.peek()[1] in _OPERATORS:
            self.take()
            self.operand(depth)

    def operand(self, depth: int) -> None:
        kind, value = self.take()
        if (kind, value) == ("mark", "-"):
            kind, value = self.take()
        if kind == "number":
            return
        if (kind, value) == ("mark", "("):
            self.expression(depth + 1)
            self.expect(")")
        elif kind == "name":
            self.name(value, depth)
        else:
            raise NotAllowed

    def name(self, value: str, depth: int) -> None:
        if self.peek() != ("mark", "("):
            if not _SYMBOL.fullmatch(value) and value not in {"true", "false"}:
                raise NotAllowed
            return
        self.take()
        if value == "Symbol":
            self.symbol()
        elif value == "Integer":
            self.integer()
        elif value == "Pow":
            self.power(depth)
        elif value in _FUNCTIONS:
            self.arguments(depth)
        else:
            raise NotAllowed

    def symbol(self) -> None:
        if self.take()[0] != "string":
            raise NotAllowed
        while self.peek() == ("mark", ","):
            self.take()
            assumption = self.take()
            self.expect("=")
            if assumption[0] != "name" or assumption[1] not in _ASSUMPTIONS or self.take() != ("name", "True"):
                raise NotAllowed
        self.expect(")")

    def integer(self) -> int:
        kind, value = self.take()
        sign = 1
        if (kind, value) == ("mark", "-"):
            sign = -1
            kind, value = self.take()
        if kind != "number":
            raise NotAllowed
        self.expect(")")
        return sign * int(value)

    def power(self, depth: int) -> None:
        self.powers += 1
        if self.powers > MAX_POWERS:
            raise NotAllowed
        self.expression(depth + 1)
        self.expect(",")
        kind, value = self.take()
        if (kind, value) == ("name", "Integer"):
            self.expect("(")
            exponent = self.integer()
        elif kind == "number":
            exponent = int(value)
        else:
            raise NotAllowed
        if abs(exponent) > MAX_EXPONENT:
            raise NotAllowed
        self.expect(")")

    def arguments(self, depth: int) -> None:
        self.expression(depth + 1)
        while self.peek() == ("mark", ","):
            self.take()
            self.expression(depth + 1)
        self.expect(")")
