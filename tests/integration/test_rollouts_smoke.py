"""The smoke test of a candidate, through a real gateway into real replicas of the echo model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from endpoints import publish
from endpoints.models import Endpoint
from inference.protocol.generation import language_signature
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import Comparison, ReplicaRoute, VariantRoute
from inference.protocol.settings import RuntimeSettings
from inference.protocol.signatures import public_signature
from registry import actions
from registry.golden import Golden, golden_prompt
from registry.models import Version, VersionStatus
from rollouts.smoke import NOT_SAVED, SmokeReport, smoke
from tests.support import fleet_cast, language
from tests.support.cast import Cast
from tests.support.gateway_house import House, free_port
from tests.support.replica_process import Replica

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]
FREE = Signature([TensorSpec("x", "FP16", [-1, -1])], [TensorSpec("y", "FP16", [-1, -1])], max_batch_size=4)
# version -> what the echo model does there; all take "input" [-1, 4], but version 4
PLANS: dict[int, dict[str, Any]] = {
    1: {},
    2: {"factor": 2.0},
    3: {"faults": [{"value": 1.0, "kind": "nan"}]},
    4: {"signature": msgspec.to_builtins(FREE), "faults": [{"value": 1.0, "kind": "nan"}]},
    5: {"faults": [{"value": 9.0, "kind": "hang"}]},  # hangs for ever after that
}
CRASHES = {"faults": [{"value": 7.0, "kind": "abort"}]}
ECHO = {
    "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 4]}],
    "max_batch_size": 32,
    "platform": "echo",
}


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Replica]]:
    found = {}
    for number, plan in PLANS.items():
        root = tmp_path_factory.mktemp(f"echo{number}")
        (root / "m").mkdir()
        (root / "m" / "echo.json").write_text(json.dumps(plan))
        found[number] = Replica(root / "r", root / "m", "echo", {}).ready()
    yield found
    for replica in found.values():
        replica.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[House]:
    found = House()
    found.gateway().wait_live()
    yield found
    found.close()


@pytest.fixture
def house(shared: House, cast: Cast, replicas: dict[int, Replica]) -> House:
    variants = []
    for number, replica in replicas.items():
        row = fleet_cast.version(of=cast.red, signature=msgspec.to_builtins(FREE) if number == 4 else ECHO)
        assert row.number == number
        signature = msgspec.convert(row.signature, Signature)
        route = ReplicaRoute("r1", 1, f"unix:{replica.path}")
        variants.append(VariantRoute(number, "primary", 10_000 if number == 1 else 0, signature, [route]))
    shared.publish(msgspec.structs.replace(shared.table(variants), token_secret=publish.token_secret()))
    shared.gateways[0].wait_ready()
    return shared


@pytest.fixture
def endpoint(house: House, cast: Cast) -> Endpoint:
    model = Version.objects.get(number=1).model
    return Endpoint.objects.create(name="mlp", team=cast.red, model=model, salt="s")


def ask(house: House, endpoint: Endpoint, number: int, **more: Any) -> SmokeReport:
    return smoke(endpoint, Version.objects.get(number=number), gateway_url=house.gateways[0].url, **more)


def save(cast: Cast, endpoint: Endpoint, values: list[float], answer: list[float], **more: Any) -> None:
    golden = Golden(
        [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": values}],
        [{"name": "output", "datatype": "FP32", "shape": [1, 4], "data": answer}],
        source_version=1,
        **more,
    )
    actions.save_golden(actor=cast.actor("developer"), model=endpoint.model, golden=golden)


def test_golden_inputs_decide(house: House, cast: Cast, endpoint: Endpoint) -> None:
    save(cast, endpoint, [1, 2, 3, 4], [1, 2, 3, 4], comparison=Comparison("close", 0.01))
    save(cast, endpoint, [4, 3, 2, 1], [4, 3, 2, 1.001], comparison=Comparison("close", 0.01))
    passed = ask(house, endpoint, 1)
    assert passed.passed, passed
    assert passed.words.startswith("2 golden inputs answered as they should be")
    assert [case.name for case in passed.cases] == ["golden-1", "golden-2"]
    assert passed.cases[0].distance == 0
    assert passed.cases[0].took_ms > 0
    doubled = ask(house, endpoint, 2)
    assert not doubled.passed
    assert doubled.words.startswith("2 of 2 golden inputs failed. golden-1: output 'output' is 0.333 apart (close)")
    assert json.loads(json.dumps(doubled.record()))["cases"][0]["passed"] is False


def test_a_wrong_answer_within_the_tolerance_is_right(house: House, cast: Cast, endpoint: Endpoint) -> None:
    save(cast, endpoint, [1, 2, 3, 4], [1, 2, 3, 4], comparison=Comparison("close", 0.4))
    assert ask(house, endpoint, 2).passed


def test_nan_fails_with_and_without_golden_inputs(house: House, cast: Cast, endpoint: Endpoint) -> None:
    report = ask(house, endpoint, 3)
    assert not report.passed
    assert report.words == f"{NOT_SAVED}; a request made from its signature failed: output 'output' has 4 values that are NaN or infinite"  # fmt: skip
    save(cast, endpoint, [1, 0, 0, 0], [1, 0, 0, 0], comparison=Comparison("auto", 0.9))
    report = ask(house, endpoint, 3)
    assert not report.passed
    assert "nan" in report.cases[0].words


def test_half_floats_travel_and_their_nan_is_seen(house: House, endpoint: Endpoint) -> None:
    report = ask(house, endpoint, 4)
    assert not report.passed
    assert "output 'y' has 16 values that are NaN" in report.words


def test_without_golden_inputs_an_answer_is_enough_and_that_is_said(house: House, endpoint: Endpoint) -> None:
    report = ask(house, endpoint, 2)
    assert report.passed
    assert report.words == f"{NOT_SAVED}; a request made from its signature was answered."
    assert [case.name for case in report.cases] == ["from the signature"]


def test_a_hanging_version_is_given_up_in_time(house: House, cast: Cast, endpoint: Endpoint) -> None:
    save(cast, endpoint, [9, 0, 0, 0], [9, 0, 0, 0])
    save(cast, endpoint, [8, 0, 0, 0], [8, 0, 0, 0])
    begun = time.monotonic()
    report = ask(house, endpoint, 5, total_s=2.0)
    assert time.monotonic() - begun < 12  # the client's slack is 5 s
    assert not report.passed
    assert report.cases[1].words == "there was no time left to ask it"


def test_a_version_that_no_gateway_knows_is_a_report(house: House, cast: Cast, endpoint: Endpoint) -> None:
    row = fleet_cast.version(of=cast.red, signature=ECHO, status=VersionStatus.READY)
    begun = time.monotonic()
    report = smoke(endpoint, row, gateway_url=house.gateways[0].url, total_s=1.0)
    assert not report.passed
    assert time.monotonic() - begun < 8
    nowhere = f"http://127.0.0.1:{free_port()}"
    report = smoke(endpoint, Version.objects.get(number=1), gateway_url=nowhere, total_s=1.0)
    assert not report.passed
    assert "gateway cannot be reached" in report.words


def test_it_waits_for_a_replica_that_the_gateway_learns_of(house: House, cast: Cast, endpoint: Endpoint) -> None:
    import threading

    row = fleet_cast.version(of=cast.red, signature=ECHO)
    known = house.now
    variants = known.endpoints[0].variants
    late = msgspec.structs.replace(variants[1], version=row.number)
    house.generation = known.generation
    told = msgspec.structs.replace(house.table([*variants, late]), token_secret=known.token_secret)
    timer = threading.Timer(1.0, lambda: house.publish(told))
    timer.start()
    report = smoke(endpoint, row, gateway_url=house.gateways[0].url)
    timer.join()
    assert report.passed, report


def test_a_crash_is_a_report(house: House, cast: Cast, endpoint: Endpoint, tmp_path: Path) -> None:
    save(cast, endpoint, [7, 0, 0, 0], [7, 0, 0, 0])
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "echo.json").write_text(json.dumps(CRASHES))
    replica = Replica(tmp_path / "r", tmp_path / "m", "echo", {}).ready()
    row = fleet_cast.version(of=cast.red, signature=ECHO)
    route = ReplicaRoute("r9", 1, f"unix:{replica.path}")
    variants = [*house.now.endpoints[0].variants, VariantRoute(row.number, "canary", 0, msgspec.convert(ECHO, Signature), [route])]  # fmt: skip
    secret = house.now.token_secret
    house.publish(msgspec.structs.replace(house.table(variants), token_secret=secret))
    report = smoke(endpoint, row, gateway_url=house.gateways[0].url, total_s=10.0)
    replica.close()
    assert not report.passed
    assert report.cases[0].words


def test_a_language_model_is_asked_its_golden_prompts_greedily(cast: Cast, tmp_path: Path) -> None:
    model = language.folder(tmp_path / "m")
    replica = Replica(tmp_path / "r", tmp_path / "m", "hf_decoder", {"generation": {"block_size": 8}}).ready()
    signature = public_signature(language_signature(), RuntimeSettings())  # as validation stores it
    row = fleet_cast.version("talker", of=cast.red, signature=msgspec.to_builtins(signature))
    endpoint = Endpoint.objects.create(name="mlp", team=cast.red, model=row.model, salt="s")
    right = text_of(language.greedy(model, "Count: one", 6))
    owner = cast.actor("owner")
    house = House()
    try:
        route = ReplicaRoute("r1", 1, f"unix:{replica.path}")
        table = house.table([VariantRoute(1, "primary", 10_000, signature, [route])])
        house.publish(msgspec.structs.replace(table, token_secret=publish.token_secret()))
        house.gateway().wait_live().wait_ready()
        unguided = ask(house, endpoint, 1)
        actions.save_golden(actor=owner, model=row.model, golden=golden_prompt("Count: one", right, max_tokens=6))
        passed = ask(house, endpoint, 1)
        actions.save_golden(
            actor=owner, model=row.model, golden=golden_prompt("Count: one", "something else entirely", max_tokens=6)
        )
        failed = ask(house, endpoint, 1)
    finally:
        house.close()
        replica.close()
    assert unguided.passed, unguided
    assert passed.passed, passed
    assert [case.passed for case in failed.cases] == [True, False]
    assert "output 'text_output' is " in failed.words


def text_of(ids: list[int]) -> str:
    return str(language.tokenizer().decode(ids))
