"""What the journeys of bad requests share: good requests to be broken, keys, and the watch over the replicas."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from tests.journeys.conftest import ECHO_BODY
from tests.support.house import House

MUTATIONS = 500
SEED = 20_240
VALUES = struct.pack("<4f", 1, 2, 3, 4)


@contextlib.contextmanager
def unshaken(house: House, models: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Whatever is sent inside: the same replica processes afterwards, and a good request is answered at once. models:
    endpoint -> a good request for it.
    """
    before = processes(house, models)
    assert len(before) >= len(models)
    yield
    for name, body in models.items():
        assert house.infer(name, body).status_code == 200
    assert processes(house, models) == before


def processes(house: House, models: dict[str, Any]) -> dict[str, int]:
    wanted = {row["id"] for name in models for row in house.ready_replicas(name)}
    return {seen.id: seen.pid for seen in house.seen() if seen.id in wanted}


def binary(size: Any = 16, *, shape: list[int] | None = None, datatype: str = "FP32") -> bytes:
    parameters = {"binary_data_size": size}
    tensor = {"name": "input", "datatype": datatype, "shape": shape or [1, 4], "parameters": parameters}
    return json.dumps({"inputs": [tensor]}).encode()


def new_key(house: House, **wish: Any) -> tuple[str, str]:
    """(id, token)"""
    made = house.ok("POST", "/api/keys/", {"name": "a key of the tests", **wish})
    return made["id"], made["token"]


def asks(house: House, endpoint: str, key: str | None) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{house.gateway_url}/v2/models/{endpoint}/infer", json=ECHO_BODY, headers=headers, timeout=30)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """One to five random edits: a byte, a cut, a piece doubled, digits made huge, pieces swapped."""
    body = bytearray(data)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(body) or 1)
        kind = rng.randrange(6)
        if kind == 0 and body:
            body[at] = rng.randrange(256)
        elif kind == 1:
            del body[at : at + rng.randint(1, 8)]
        elif kind == 2:
            body[at:at] = body[at : at + rng.randint(1, 16)]
        elif kind == 3:
            body[at:at] = rng.choice(
                [b"-", b"9" * 25, b"1e400", b"null", b"{}", b"[]", b"\0", b'"', b"\\u0000", b"true"]
            )
        elif kind == 4:
            body = body[at:] + body[:at]
        else:
            body[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 4)))
    return bytes(body)


Change = Callable[[dict[str, Any]], Any]


def changed(**fields: Any) -> Change:
    """The same request with other fields in its input; ... takes a field away."""

    def change(body: dict[str, Any]) -> Any:
        tensor = body["inputs"][0] | fields
        return {"inputs": [{name: value for name, value in tensor.items() if value is not ...}]}

    return change
