"""Preflight on a real database: what would block a rollout, what is worth a look, and that nothing is changed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.utils import timezone

from endpoints import actions as endpoints
from endpoints.models import Endpoint
from fleet import actions as fleet
from fleet import reconciling
from fleet.models import Deployment, Device, Replica
from inference.protocol.samples import Sample
from inference.protocol.supervision import Seen
from registry.models import GoldenInput, Version
from rollouts import plans
from rollouts.plans import Plan, PlanSettings, SetWeight
from rollouts.preflight import Preflight, preflight
from telemetry import actions as telemetry
from tests.support.fleet_cast import GIB, SIGNATURE, Rules, devices, person, version
from worker.agent import converge_once

pytestmark = pytest.mark.django_db
FAST = plans.TEMPLATES["fast"]
NO_SURGE = Plan("tight", [SetWeight(10_000)], PlanSettings(surge=False))


@pytest.fixture(autouse=True)
def old_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "AFTER_START_S", -(10**9))


class Stage:
    """Endpoint "digits" with two ready replicas of version 1, 3 GiB each, on a host of 8 GiB."""

    def __init__(self) -> None:
        self.owner = person("owner")
        self.stable = version(peak_bytes=3 * GIB)
        self.host = Rules("a")
        converge_once("a", self.host)
        self.endpoint = endpoints.deploy(version=self.stable, actor=self.owner, replicas=2)
        for _ in range(6):
            fleet.reconcile()
            converge_once("a", self.host)
        assert Replica.objects.filter(phase="ready").count() == 2
        self.free(2)

    def free(self, gib: float) -> None:
        Device.objects.update(memory_free_bytes=int(gib * GIB))

    def look(self, candidate: Version, plan: Plan = FAST, **more: Any) -> Preflight:
        return preflight(Endpoint.objects.get(pk=self.endpoint.pk), candidate, plan, **more)


@pytest.fixture
def stage(db: None) -> Stage:
    return Stage()


def test_a_clear_rollout_is_clear_and_nothing_is_written(stage: Stage) -> None:
    candidate = version(peak_bytes=GIB)
    GoldenInput.objects.create(model=candidate.model, name="g", inputs=[], outputs=[])
    before = (Deployment.objects.count(), Replica.objects.count())
    found = stage.look(candidate)
    assert found.is_clear, found.blockers
    assert found.golden_inputs == 1
    assert found.capacity is not None
    assert found.capacity.words == "2 replicas of the candidate fit beside the stable version."
    assert found.compatibility is not None
    assert found.compatibility.kind == "compatible"
    assert (Deployment.objects.count(), Replica.objects.count()) == before
    record = json.loads(json.dumps(found.record()))
    assert record["capacity"]["words"] == found.capacity.words
    assert record["duration"]["steps"][0]["words"] == "10 % of the traffic"


def test_a_breaking_signature_blocks_without_a_reason(stage: Stage) -> None:
    wider = {**SIGNATURE, "inputs": [{"name": "x", "datatype": "FP16", "shape": [-1, 2]}]}
    candidate = version(signature=wider, peak_bytes=GIB)
    found = stage.look(candidate)
    assert found.blockers == (
        "The signature breaks clients: input 'x': datatype FP32 became FP16. Give a reason if that is meant.",
    )
    meant = stage.look(candidate, reason="all clients send FP16 now")
    assert meant.is_clear
    assert "and that is meant: input 'x'" in meant.warnings[0]


def test_a_signature_that_grows_is_told(stage: Stage) -> None:
    more = [*SIGNATURE["outputs"], {"name": "z", "datatype": "FP32", "shape": [-1]}]  # type: ignore[misc]
    found = stage.look(version(signature={**SIGNATURE, "outputs": more}, peak_bytes=GIB))
    assert found.is_clear
    assert "The signature grows: output 'z' is new." in found.warnings


def test_what_does_not_fit_beside_blocks_and_the_exchange_is_offered(stage: Stage) -> None:
    found = stage.look(version(peak_bytes=3 * GIB))
    assert found.capacity is not None
    assert (found.capacity.placed, found.capacity.replicas, found.capacity.by_exchange) == (0, 2, True)
    assert "cpu of host a is 1.0 GiB short (3.0 needed, 2.0 left)" in found.capacity.words
    assert found.blockers[0].endswith("Without surge, replica by replica, it fits. Use a plan without surge.")
    assert stage.look(version(peak_bytes=3 * GIB), NO_SURGE).is_clear


def test_what_fits_in_part_is_a_warning(stage: Stage) -> None:
    stage.free(4)
    found = stage.look(version(peak_bytes=3 * GIB))
    assert found.is_clear
    assert any(warning.startswith("1 of 2 replicas of the candidate fit") for warning in found.warnings)


def test_what_fits_nowhere_blocks_both_ways(stage: Stage) -> None:
    candidate = version(peak_bytes=9 * GIB)
    found = stage.look(candidate)
    assert found.capacity is not None
    assert found.capacity.by_exchange is False
    assert "Nor does it fit replica by replica: cpu of host a is 4.0 GiB short" in found.blockers[0]
    assert stage.look(candidate, NO_SURGE).blockers[0].startswith("Replicas cannot be exchanged one by one")


def test_without_a_living_host_it_says_so(stage: Stage) -> None:
    from tests.support.fleet_cast import lapse

    lapse("a")
    assert "no host is alive" in stage.look(version(peak_bytes=GIB)).blockers[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"status": "validating"}, "is validating: only a ready version"),
        ({"format": "lora"}, "is an adapter"),
    ],
)
def test_who_cannot_be_a_candidate(stage: Stage, changes: dict[str, Any], words: str) -> None:
    found = stage.look(version(**changes))
    assert any(words in told for told in found.blockers), found.blockers
    assert found.capacity is None


def test_another_model_and_the_stable_version_itself_are_refused(stage: Stage) -> None:
    assert "another model" in stage.look(version("other")).blockers[0]
    assert stage.look(stage.stable).blockers == ("digits:1 is the stable version already.",)


def test_a_split_by_hand_has_no_stable_version(stage: Stage) -> None:
    candidate = version(peak_bytes=GIB)
    endpoints.deploy(version=candidate, actor=stage.owner, weight_bp=1000)
    assert stage.look(candidate).blockers[0].startswith("No version has all the traffic")


def test_the_duration_goes_by_the_traffic_of_now(stage: Stage) -> None:
    candidate = version(peak_bytes=GIB)
    quiet = stage.look(candidate)
    assert any("no traffic now" in told for told in quiet.warnings)
    now = timezone.now().timestamp()
    telemetry.store(
        Sample(source="g", sequence=second, at_unix_s=now - second, endpoint="digits", version=1, arm=arm, requests=n)
        for second, (arm, n) in enumerate([("primary", 60)] * 250)
    )
    telemetry.store([Sample(source="p", sequence=1, at_unix_s=now, endpoint="digits", version=1, arm="playground", requests=9000)])  # fmt: skip
    busy = stage.look(candidate)
    assert "at 50 requests/s" in busy.duration.words
    assert busy.duration.expected_s < quiet.duration.expected_s
    assert not any("traffic now" in told for told in busy.warnings)


def test_devices_that_carry_shares(stage: Stage) -> None:
    fleet.heartbeat_host("b", Seen("boot", 1, [], [], devices(16, cudas=1), standby_ready=True))
    Deployment.objects.update(device="cuda")
    found = stage.look(version(peak_bytes=9 * GIB))
    assert found.capacity is not None
    assert "cuda:0 of host b is 2.5 GiB short (18.5 needed, 16.0 left)" in found.capacity.words
