"""KServe's client, unchanged, against REST and gRPC of a real gateway process with fake replicas behind it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, VariantRoute
from tests.support.gateway_house import MLP, ROOT, TEXT, House, free_port

DATATYPES = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP64", "BOOL"]
DOORS = [("rest", "json"), ("rest", "binary"), ("grpc", "binary")]
CARRIED = [(*door, kind) for door in DOORS for kind in (*DATATYPES, *(() if door[1] == "json" else ("FP16",)))]


def same(datatype: str) -> Signature:
    return Signature([TensorSpec("x", datatype, [-1, 2])], [TensorSpec("y", datatype, [-1, 2])], max_batch_size=8)


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, Any]]:
    """What the client got: door -> question -> answer."""
    house = House()
    try:
        house.replica("r1")
        house.replica("same").echoes = True
        gateway = house.gateway(SERINUS_GRPC_PORT=str(free_port()))

        def endpoint(name: str, signature: Signature) -> EndpointRoute:
            variant = VariantRoute(1, "primary", 10_000, signature, [house.route("same")] if name != "empty" else [])
            return EndpointRoute(name, name, "salt", False, 5000, 64, [variant])

        kinds = (*DATATYPES, "FP16")
        others = [endpoint("text", TEXT), endpoint("empty", MLP), *(endpoint(d.lower(), same(d)) for d in kinds)]
        house.publish(house.table(endpoints=others))
        gateway.wait_live().wait_ready("mlp").wait_ready("text")
        script = str(ROOT / "tests" / "support" / "kserve_client.py")
        done = subprocess.run(
            [sys.executable, script, gateway.url, gateway.grpc_address, "ser_all.s2"],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        yield json.loads(done.stdout.splitlines()[-1])
    finally:
        house.close()


@pytest.mark.parametrize("door", ["rest", "grpc"])
def test_it_finds_out_who_is_ready(seen: dict[str, Any], door: str) -> None:
    assert [seen[door][what] for what in ("live", "ready", "model ready", "unready")] == [True, True, True, False]


@pytest.mark.parametrize(("door", "form"), DOORS)
def test_numbers_are_answered_under_the_requests_id(seen: dict[str, Any], door: str, form: str) -> None:
    found = seen[door][f"{form} mlp"]
    assert (found["model"], found["id"], found["shape"]) == ("mlp", "mlp-1", [2, 4])
    assert found["data"] == [0, 2, 4, 6, 32, 34, 36, 38]


@pytest.mark.parametrize(("door", "form"), DOORS)
def test_texts_come_back(seen: dict[str, Any], door: str, form: str) -> None:
    assert seen[door][f"{form} text"]["data"] == ["grün", "b"]


@pytest.mark.parametrize(("door", "form", "datatype"), CARRIED)
def test_every_datatype_comes_back_as_it_went(seen: dict[str, Any], door: str, form: str, datatype: str) -> None:
    found = seen[door][f"{form} {datatype}"]
    assert (found["shape"], found["data"]) == ([2, 2], [0, 1, 1, 0])


@pytest.mark.parametrize(("question", "status", "code", "words"), [
    ("no key", "401", "UNAUTHENTICATED", "A valid API key is needed"),
    ("no model", "404", "NOT_FOUND", "unknown model"),
    ("wrong shape", "400", "INVALID_ARGUMENT", "unexpected shape for input 'x'"),
])  # fmt: skip
def test_refusals_reach_its_caller_in_our_words(
    seen: dict[str, Any], question: str, status: str, code: str, words: str
) -> None:
    for door, wanted in (("rest", status), ("grpc", code)):
        assert seen[door][question].startswith(wanted)
        assert words in seen[door][question]
