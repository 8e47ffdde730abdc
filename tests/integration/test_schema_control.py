"""The control API against its own OpenAPI description: no 5xx, documented statuses, errors in one shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from drf_spectacular.generators import SchemaGenerator

from tests.support import schemas
from tests.support.cast import Cast
from tests.support.contents import ready_version

EXAMPLES = 8
TYPED = {400, 401, 403, 404, 405, 409, 413, 415, 422}


def description() -> dict[str, Any]:
    found: dict[str, Any] = SchemaGenerator().get_schema(public=True)
    return found


def is_typed(path: str, error: Any) -> bool:
    """Whether an error has the shape of its door: words alone at Triton's, code and request id at ours."""
    if path.startswith("/v1/"):
        return isinstance(error, dict) and set(error) == {"message", "type", "param", "code"}
    if path.startswith("/v2/repository/"):
        return isinstance(error, str) and bool(error) and "ErrorDetail" not in error
    return {"code", "message", "request_id"} <= set(error)


@pytest.mark.timeout(180)
def test_whatever_the_description_allows_or_forbids_is_an_answer_or_a_typed_error(cast: Cast) -> None:
    version = ready_version(cast.actor("owner"), cast.red)
    names = {"model": version.model.name, "name": version.model.name, "number": str(version.number), "team": "red"}
    headers = cast.bearer("root")
    client, sent, refused = Client(raise_request_exception=False), 0, 0
    for operation in schemas.operations(description()):
        documented = {int(status) for status in operation.definition.raw["responses"]}

        def send(method: str, path: str, body: Any, media_type: str, documented: set[int] = documented) -> None:
            nonlocal refused
            data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
            with transaction.atomic():  # a request that breaks the database's transaction breaks its own alone
                answer = client.generic(
                    method, path, data, content_type=media_type or "application/json", headers=headers
                )
                told = f"{method} {path} {data[:300]!r}: {answer.status_code} {answer.content[:300]!r}"
                assert answer.status_code in documented | TYPED, told
                if answer.status_code in TYPED:
                    refused += 1
                    assert is_typed(path, answer.json()["error"]), told
                transaction.set_rollback(True)  # each meets the same rows

        sent += schemas.drive(operation, send, examples=EXAMPLES, names=names)
    assert sent > 400
    assert 0 < refused < sent
