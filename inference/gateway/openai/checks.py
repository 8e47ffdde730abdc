"""Reading a request's JSON and its ranges; what is wrong is said in OpenAI's words, with the field's name."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from inference.errors import InvalidInput, Malformed
from inference.gateway import codec
from inference.gateway.openai.problems import BadField
from inference.gateway.web import Part

T = TypeVar("T")
_PLACE = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}


def decode(data: Part, kind: type[T]) -> T:
    """The request in `data`. Raises Malformed for what is no JSON object, BadField for a wrong type."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        found: T = decoder.decode(data)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from error
    except RecursionError as error:
        raise Malformed(f"JSON is nested deeper than {codec.MAX_DEPTH}") from error
    except codec.JSON_ERRORS as error:
        raise Malformed(f"We could not parse the JSON body of your request: {error}") from error
    return found


def _wrong_type(text: str) -> InvalidInput:
    place = _PLACE.search(text)
    if place is None:
        return BadField(f"The body of your request must be a JSON object. {text}", None, "invalid_type")
    param = place.group(1).replace("[...]", "[]")
    return BadField(f"Invalid type for '{param}': {text[: place.start()]}.", param, "invalid_type")


def number(value: float | None, param: str, low: float, high: float | None = None) -> None:
    """Raises BadField unless `value` is None or lies in [low, high]."""
    if value is None:
        return
    kind = "integer" if isinstance(value, int) else "decimal"
    if not value >= low:
        raise BadField(
            f"Invalid '{param}': {kind} below minimum value. Expected a value >= {low}, but got {value} instead.",
            param,
            f"{kind}_below_min_value",
        )
    if high is not None and value > high:
        raise BadField(
            f"Invalid '{param}': {kind} above maximum value. Expected a value <= {high}, but got {value} instead.",
            param,
            f"{kind}_above_max_value",
        )


def above(value: float | None, param: str, low: float, high: float) -> None:
    """As `number`, for a range (low, high] that does not hold its lower end."""
    number(value, param, low, high)
    if value == low:
        raise BadField(
            f"Invalid '{param}': decimal below minimum value. Expected a value > {low}, but got {value} instead.",
            param,
            "decimal_below_min_value",
        )


def needed(value: T | None, param: str) -> T:
    """Raises BadField for a value that is not there."""
    if value is None or value == "":
        raise BadField(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    return value


def token_ids(values: list[int], param: str) -> list[int]:
    """Raises BadField for an id that cannot be one."""
    if any(not 0 <= value < 1 << 31 for value in values):
        raise BadField(f"Invalid '{param}': a token id is a whole number from 0 to 2147483647.", param)
    return values


def refused(given: object, param: str, words: str) -> None:
    """Raises BadField when a field is there that this server does not serve."""
    if given:
        raise BadField(f"'{param}' is not supported here: {words}", param, "unsupported_parameter")
