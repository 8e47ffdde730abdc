"""Whom a rollout sends to its candidate whatever the shares say: its matches, made ready once for each table. Pure.

A rule with a share takes those of its callers whose value hashes below it, so that who is in stays in when it rises.
Names of headers go by small letters, as they come in HTTP/2 and gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference.gateway.router import unit
from inference.protocol.routes import WEIGHT_TOTAL_BP, Match, Steering

if TYPE_CHECKING:
    from inference.gateway.admission import Caller

Given = Mapping[bytes, bytes]
Scalars = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """One match. header: its name as it comes over the wire; salt: of the share's hash."""

    match: Match
    header: bytes
    salt: str
    candidate: int

    def holds(self, value: str | None) -> bool:
        """Whether a caller with this value (None: it has none) goes to the candidate."""
        match = self.match
        if value is None:
            return False
        if (match.values or match.prefix) and not (
            value in match.values or (match.prefix and value.startswith(match.prefix))
        ):
            return False
        if match.share_bp >= WEIGHT_TOTAL_BP:
            return True
        return unit(self.salt, value, self.candidate) * WEIGHT_TOTAL_BP < match.share_bp


class Rules:
    """The matches of one endpoint. asks_parameters: whether a request has to be read before all of them are known."""

    __slots__ = ("_by_parameter", "_others", "asks_parameters")

    def __init__(self, steering: Steering, salt: str) -> None:
        rules = [
            Rule(
                match,
                match.name.lower().encode("latin-1", "replace"),
                f"{salt}\0{match.source}\0{match.name}",
                steering.candidate,
            )
            for match in steering.match
        ]
        self._by_parameter = [rule for rule in rules if rule.match.source == "parameter"]
        self._others = [rule for rule in rules if rule.match.source != "parameter"]
        self.asks_parameters = bool(self._by_parameter)

    def match(self, caller: Caller, headers: Given) -> bool:
        """Whether a header, the key or the user sends this request to the candidate."""
        return any(rule.holds(_value(rule, caller, headers)) for rule in self._others)

    def match_parameters(self, parameters: Scalars) -> bool:
        """Whether a parameter does. Numbers are compared as JSON writes them, switches as true and false."""
        return any(
            rule.holds(_text(parameters[rule.match.name]))
            for rule in self._by_parameter
            if rule.match.name in parameters
        )


def _value(rule: Rule, caller: Caller, headers: Given) -> str | None:
    source = rule.match.source
    if source == "header":
        found = headers.get(rule.header)
        return found.decode("latin-1") if found is not None else None
    if source == "user":
        return caller.user or None
    return caller.id if source == "key" and caller.id and not caller.user else None


def _text(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
