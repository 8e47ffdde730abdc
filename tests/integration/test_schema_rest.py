"""The REST protocol against its OpenAPI description: no 500, documented statuses, errors in the protocol's one shape."""

from __future__ import annotations

import json
from unittest.mock import Mock

import httpx
import pytest

from inference.gateway import doors
from tests.support import oip_openapi, schemas
from tests.support.gateway_house import House
from tests.support.hygiene import LEAKS

EXAMPLES = 12
# what the description leaves out, and why
ELSEWHERE = {"stream", "/v2/stream"}  # WebSockets


@pytest.fixture(scope="module")
def house():
    found = House()
    found.replica()
    found.publish(found.table(queue_limit=1000))
    found.gateway().wait_live().wait_ready()
    yield found
    found.close()


def test_every_door_is_described():
    table = doors.open_all(doors.Rooms(*(Mock() for _ in range(6))))
    described = oip_openapi.description()["paths"]
    assert set(table.paths) - ELSEWHERE <= set(described)
    verbs = {verb or "" for verb in table.verbs} - ELSEWHERE
    ends = {
        path.removeprefix("/v2/models/{name}").lstrip("/") for path in described if path.startswith("/v2/models/{name}")
    }
    assert verbs <= ends
    for what, pattern, _ in table.patterns:
        examples = (path.replace("{name}", "m").replace("{region}", "r") for path in described)
        assert any(pattern.fullmatch(example) for example in examples), what


def test_what_the_description_allows_or_forbids_is_answered_as_described(house):
    gateway = house.gateways[0]
    seen: dict[int, int] = {}
    client = httpx.Client(base_url=gateway.url, headers={"Authorization": "Bearer ser_all.s2"}, timeout=30)
    names = {"name": "mlp", "number": "1", "region": "r"}
    sent = 0
    for operation in schemas.operations(oip_openapi.description()):
        documented = {int(status) for status in operation.definition.raw["responses"]}

        def send(method, path, body, media_type, documented=documented):
            data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
            answer = client.request(method, path, content=data, headers={"Content-Type": media_type or "text/plain"})
            told = f"{method} {path} {data[:300]!r}: {answer.status_code} {answer.text[:300]!r}"
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert answer.status_code in documented, told
            if answer.status_code != 200 and "/ready" not in path:
                found = answer.json()
                assert list(found) == ["error"], told
                assert not LEAKS.search(found["error"]), told
                assert answer.headers["x-error-code"], told

        sent += schemas.drive(operation, send, examples=EXAMPLES, names=names)
    client.close()
    assert sent > 500
    assert {200, 400, 404, 405, 501} - set(seen) <= {405, 501}, seen
    assert seen[200] > 50, seen
    assert "Traceback" not in gateway.log.read_text()
