"""Request bodies of the control API: bounded, strict JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from django.conf import settings
from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser

from accounts.names import is_storable
from inference.errors import TooLarge


class StrictJSONParser(JSONParser):
    """Refuses what is too large, nested without end, doubly named, no number, or cannot be stored as text."""

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        data = stream.read(limit + 1)
        if len(data) > limit:
            raise TooLarge(f"a request body of this API may have at most {limit} bytes")
        try:
            value = json.loads(data.decode(), parse_constant=_no_number, object_pairs_hook=_once)
            text = json.dumps(value, ensure_ascii=False)
        except (ValueError, RecursionError) as error:
            raise ParseError("The body is no JSON that this API reads.") from error
        if not is_storable(text.replace("\\u0000", "\0")):
            raise ParseError("Text must hold no NUL character and no half of a surrogate pair.")
        return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found
