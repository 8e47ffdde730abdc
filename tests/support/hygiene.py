"""What an answer to a bad request looks like, wherever it comes from."""

from __future__ import annotations

import re
from typing import Any

# What must never stand in an answer: paths, SQL, tracebacks, sockets, process ids.
LEAKS = re.compile(
    r"/(tmp|root|home|usr|var|work|proc)/|Traceback|File \"|psycopg|SELECT .* FROM|\.py\b|\.sock\b|0x[0-9a-f]{8}|\bpid\b",
    re.IGNORECASE,
)


def check_refusal(answer: Any, *statuses: int) -> str:
    """The gateway's answer has one of `statuses`, the protocol's own shape and no insides; returns what it says."""
    assert answer.status_code in statuses, (answer.status_code, answer.text[:300])
    body = answer.json()
    assert list(body) == ["error"], body
    said = body["error"]
    assert isinstance(said, str)
    assert said
    assert not LEAKS.search(said), said
    assert answer.headers["x-request-id"]
    assert answer.headers["x-error-code"]
    return said
