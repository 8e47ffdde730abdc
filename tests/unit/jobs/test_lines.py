"""The lines of an input file: what is run, and what is refused in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import lines
from jobs.limits import MAX_LINE_BYTES
from jobs.lines import Checker

URL = "/v1/chat/completions"


def line(number: int, **changes: Any) -> dict[str, Any]:
    made = {"custom_id": f"c{number}", "method": "POST", "url": URL, "body": {"model": "m", "messages": []}}
    return made | changes


def write(folder: Path, *rows: object) -> Path:
    path = folder / "in.jsonl"
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    return path


def problems(path: Path) -> list[Any]:
    checker = Checker(URL)
    return [found for one in lines.read(path) if (found := checker.check(one))]


def test_good_lines_pass_and_blank_ones_count_for_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf", line(0), b"\n", b"  \r\n", line(1), json.dumps(line(2)).encode())
    assert problems(path) == []
    found = list(lines.read(path))
    assert [(one.number, one.at) for one in found] == [(0, 1), (1, 4), (2, 5)]
    assert found[-1].end == path.stat().st_size
    again = list(lines.read(path, number=1, offset=found[0].end))
    assert [(one.number, one.data, one.end) for one in again] == [(o.number, o.data, o.end) for o in found[1:]]


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b"{]\n", "invalid_json_line", None),
        (b"[1]\n", "invalid_line", None),
        (b'{"custom_id":"\xff"}\n', "invalid_json_line", None),
        (b'{"body":{"a":' + b"[" * 5000 + b"\n", "invalid_json_line", None),
        ({"custom_id": "a"}, "invalid_line", None),
        (line(1, custom_id=7), "invalid_line", None),
        (line(1, custom_id=""), "invalid_custom_id", "custom_id"),
        (line(1, custom_id="a\0"), "invalid_custom_id", "custom_id"),
        (line(1, custom_id="x" * 513), "invalid_custom_id", "custom_id"),
        (line(0), "duplicate_custom_id", "custom_id"),
        (line(1, method="GET"), "invalid_method", "method"),
        (line(1, url="/v1/embeddings"), "mismatched_url", "url"),
        (line(1, body={}), "missing_model", "body.model"),
        (line(1, body={"model": 3}), "missing_model", "body.model"),
        (line(1, body={"model": "m", "stream": True}), "invalid_stream", "body.stream"),
        (line(1, body=[]), "invalid_line", None),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: object, code: str, param: str | None) -> None:
    (found,) = problems(write(tmp_path, line(0), bad, line(2)))
    assert (found.code, found.line, found.param) == (code, 2, param)


def test_a_line_has_a_longest_length(tmp_path: Path) -> None:
    fits = line(0, body={"model": "m", "p": ""})
    room = MAX_LINE_BYTES - len(json.dumps(fits)) - 1
    fits["body"]["p"] = "x" * room
    longer = line(1, body={"model": "m", "p": "x" * (room + 1)})
    endless = json.dumps(line(2, body={"model": "m", "p": "x" * 3 * MAX_LINE_BYTES})).encode() + b"\n"
    found = problems(write(tmp_path, fits, longer, endless, line(3)))
    assert [(one.code, one.line) for one in found] == [("line_too_long", 2), ("line_too_long", 3)]
