"""The lines of an input file: read in bounded pieces, and checked as OpenAI checks them.

A line is `{"custom_id", "method": "POST", "url", "body"}`. Blank lines count for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from accounts.names import is_storable
from jobs.limits import MAX_LINE_BYTES, MAX_LINES

MAX_CUSTOM_ID = 512


@dataclass(frozen=True, slots=True)
class Line:
    """number: which of the lines that are not blank, from 0; at: which of the file's, from 1; end: where the next begins."""

    number: int
    at: int
    data: bytes
    end: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a line cannot be run, in the fields of OpenAI's error list."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None

    def shown(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "line": self.line, "param": self.param}


class Request(msgspec.Struct):
    """One line, read."""

    custom_id: str
    url: str
    body: dict[str, Any]
    method: str = "POST"


def read(path: Path, *, number: int = 0, offset: int = 0) -> Iterator[Line]:
    """The lines from `offset` on, where line `number` begins. A line that is too long comes cut, one byte over the bound.

    Raises FileNotFoundError.
    """
    with path.open("rb") as file:
        file.seek(offset)
        at = 0
        while row := file.readline(MAX_LINE_BYTES + 1):
            at += 1
            if len(row) > MAX_LINE_BYTES and not row.endswith(b"\n"):
                _skip_rest(file)
            if not row.strip():
                continue
            yield Line(number, at, row, file.tell())
            number += 1


def _skip_rest(file: Any) -> None:
    while (more := file.readline(MAX_LINE_BYTES)) and not more.endswith(b"\n"):
        pass


def parse(data: bytes) -> Request:
    """Raises msgspec.MsgspecError, UnicodeDecodeError, RecursionError."""
    return msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=Request)


class Checker:
    """Goes over the lines of one file, in order."""

    def __init__(self, url: str) -> None:
        self.models: set[str] = set()
        self.count = 0
        self._url = url
        self._seen: set[str] = set()

    def check(self, line: Line) -> Problem | None:
        """What is wrong with this line; None when it can be run."""
        self.count += 1
        if self.count > MAX_LINES:
            return Problem("too_many_requests", f"A batch has at most {MAX_LINES} lines: split the file.", line.at)
        if len(line.data) > MAX_LINE_BYTES:
            return Problem("line_too_long", f"A line has at most {MAX_LINE_BYTES} bytes.", line.at)
        try:
            request = parse(line.data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return _unreadable(error, line.at)
        found = self._wrong(request)
        return Problem(found[0], found[1], line.at, found[2]) if found else None

    def _wrong(self, request: Request) -> tuple[str, str, str] | None:
        if not 1 <= len(request.custom_id) <= MAX_CUSTOM_ID or not is_storable(request.custom_id):
            return "invalid_custom_id", f"custom_id must have 1 to {MAX_CUSTOM_ID} characters.", "custom_id"
        if request.custom_id in self._seen:
            told = request.custom_id[:80]
            return "duplicate_custom_id", f"The custom_id '{told}' stands on an earlier line, too.", "custom_id"
        self._seen.add(request.custom_id)
        if request.method != "POST":
            return "invalid_method", f"The method must be POST, not '{request.method[:20]}'.", "method"
        if request.url != self._url:
            told = request.url[:80]
            return "mismatched_url", f"The url '{told}' is not the batch's endpoint '{self._url}'.", "url"
        return self._wrong_body(request.body)

    def _wrong_body(self, body: dict[str, Any]) -> tuple[str, str, str] | None:
        model = body.get("model")
        if not isinstance(model, str) or not 1 <= len(model) <= 200 or not is_storable(model):
            return "missing_model", "body.model must name the endpoint that shall answer.", "body.model"
        if body.get("stream"):
            return "invalid_stream", "Answers of a batch are not streamed: leave 'stream' out.", "body.stream"
        self.models.add(model)
        return None


def _unreadable(error: Exception, at: int) -> Problem:
    if isinstance(error, msgspec.ValidationError):
        return Problem("invalid_line", f"Each line is {{custom_id, method, url, body}}: {error}", at)
    return Problem("invalid_json_line", "This line is not a JSON object.", at)
