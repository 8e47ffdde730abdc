"""Requests that an OpenAPI description allows, and requests that it forbids, made by schemathesis and sent by ours."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.core import NOT_SET

Send = Callable[[str, str, Any, str], Any]


def operations(description: dict[str, Any]) -> Iterator[Any]:
    """Every operation of the description."""
    for found in schemathesis.openapi.from_dict(description).get_all_operations():
        yield found.ok()


def drive(operation: Any, send: Send, *, examples: int, names: dict[str, str] | None = None) -> int:
    """Sends `examples` requests of each mode; `send(method, path, body, media_type)` looks at the answer. names: values
    for parameters of the path, which every second request gets so that it meets something that exists.
    """
    sent = 0
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

        @seed(zlib.crc32(operation.label.encode()))
        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=examples, database=None, derandomize=False, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck), deadline=None,
        )  # fmt: skip
        def go(case: Any) -> None:
            nonlocal sent
            path = case.formatted_path
            if sent % 2 and names:
                path = re.sub(r"\{(\w+)\}", lambda match: names.get(match[1], "x"), operation.path)
            if case.query:
                path += "?" + urlencode(case.query, doseq=True, errors="replace")
            send(case.method, path, None if case.body is NOT_SET else case.body, case.media_type or "")
            sent += 1

        try:
            go()
        except Exception as error:
            if type(error).__name__ not in {"Unsatisfiable", "SkipTest", "Skipped"}:
                raise  # nothing can be negated in an operation without inputs
    return sent
