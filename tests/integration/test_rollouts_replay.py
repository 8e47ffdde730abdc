"""Recorded requests through a real gateway and back: what they are compared with, who may, and what a kill leaves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import msgspec
import pytest
from django.db.models.functions import Now

from accounts.models import AuditEntry
from endpoints import publish
from endpoints.models import Endpoint
from inference.errors import Conflict, Forbidden, InvalidInput
from inference.protocol import generation
from inference.protocol.messages import Fault
from inference.protocol.routes import Comparison, EndpointRoute, Recording, VariantRoute
from inference.protocol.settings import RuntimeSettings
from inference.protocol.signatures import public_signature
from registry.models import Version
from rollouts import replay
from rollouts.replay_models import Replay
from telemetry import shadows
from telemetry.models import RecordedRequest
from tests.support import fleet_cast
from tests.support.cast import Cast
from tests.support.celery_workers import celery_worker
from tests.support.database import Services
from tests.support.fake_language import FakeLanguage
from tests.support.gateway_house import MLP, House, request, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(180)]
CLOSE = Comparison(kind="close")


@pytest.fixture(scope="module")
def shared() -> Iterator[House]:
    found = House()
    found.replica("r1")
    found.replica("r2", version=2)
    for name, version in (("lm1", 1), ("lm2", 2)):
        language = FakeLanguage(str(found.folder / f"{name}.sock"), name=name, version=version)
        found.replicas[name] = found.run(language.start())
    found.gateway()
    yield found
    found.close()


@pytest.fixture
def house(shared: House, cast: Cast, settings) -> House:
    settings.REDIS_URL = shared.valkey.url
    shared.valkey.client.flushall()
    shared.replicas["r2"].fault, shared.replicas["r2"].factor = None, 2.0
    shared.replicas["lm2"].words = ""
    return shared


@pytest.fixture
def endpoint(house: House, cast: Cast) -> Endpoint:
    """Behind "mlp" version 1 has the traffic, which is recorded, and 2 is the candidate; behind "lm" likewise."""
    return serving(house, cast, "mlp", MLP, ("r1", "r2"))


def serving(house: House, cast: Cast, name: str, signature, replicas: tuple[str, str]) -> Endpoint:
    rows = [fleet_cast.version(name, of=cast.red) for _ in replicas]
    variants = [
        VariantRoute(number, "primary" if number == 1 else "canary", 10_000 if number == 1 else 0, signature,
                     [house.route(replica)] if replica else [])
        for number, replica in enumerate(replicas, 1)
    ]  # fmt: skip
    route = EndpointRoute(name, name, "s", True, 5000, 64, variants, recording=Recording(10_000))
    table = msgspec.structs.replace(house.table(), endpoints=[route], token_secret=publish.token_secret())
    house.publish(table)
    gateway = house.gateways[0].wait_live()
    until(lambda: f"generation {house.generation} " in gateway.log.read_text(), 10)
    gateway.wait_ready(name)
    return Endpoint.objects.create(name=name, team=cast.red, model=rows[0].model, salt="s")


def record(house: House, endpoint: Endpoint, count: int) -> None:
    """Sends so many requests, and waits until they are rows."""
    with httpx.Client(timeout=30) as client:
        for number in range(count):
            body = request([float(number + place) for place in range(16)])
            url = f"{house.gateways[0].url}/v2/models/{endpoint.name}/infer"
            assert client.post(url, json=body).status_code == 200
    arrived(endpoint, count)


def arrived(endpoint: Endpoint, count: int) -> None:
    def drained() -> bool:
        shadows.drain()
        return RecordedRequest.objects.filter(endpoint=endpoint.name).count() == count

    until(drained, 15)


def candidate(endpoint: Endpoint) -> Version:
    return Version.objects.get(model=endpoint.model, number=2)


def started(endpoint: Endpoint, cast: Cast, **more) -> Replay:
    return replay.start_replay(
        endpoint=endpoint, version=candidate(endpoint), actor=cast.actor("developer"), rate_per_s=200.0, **more
    )


def run(house: House, row: Replay) -> Replay:
    """Slice after slice, as the workers do, until it ends."""
    end = time.monotonic() + 60
    while row.status in replay.ACTIVE:
        assert time.monotonic() < end
        replay.advance(str(row.pk), gateway_url=house.gateways[0].url)
        row.refresh_from_db()
        if row.lease_until is not None:
            time.sleep(0.2)
    return row


def test_a_candidate_that_answers_the_same_passes(house, endpoint, cast) -> None:
    assert replay.replay_gate(endpoint, candidate(endpoint))[0] == "no_data"
    record(house, endpoint, 40)
    row = run(house, started(endpoint, cast))
    assert (row.status, row.total, row.cursor, row.requests, row.skipped) == ("done", 40, 40, 40, 0)
    assert (row.compared, row.drifted, row.errors, row.worst) == (40, 0, 0, [])
    for side in ("recorded", "replayed"):
        assert sum(row.latencies[side].values()) == 40
    assert {infer.tensors[0].name for infer in house.replicas["r2"].seen[-40:]} == {"x"}
    verdict, words = replay.replay_gate(endpoint, candidate(endpoint))
    assert verdict == "passed"
    assert words.startswith("40 recorded requests were asked again: 0 of 40 answers are other than recorded")


def test_other_answers_fail_and_the_worst_ten_are_told(house, endpoint, cast) -> None:
    record(house, endpoint, 12)
    house.replicas["r2"].factor = 3.0
    row = run(house, started(endpoint, cast, comparison=CLOSE))
    assert (row.compared, row.drifted) == (12, 12)
    assert row.drift_sum == pytest.approx(12 * 0.2)
    assert len(row.worst) == 10
    worst = row.worst[0]
    assert (worst["output"], worst["kind"], worst["distance"]) == ("y", "close", pytest.approx(0.2))
    assert worst["request"].startswith("x FP32[1, 16]: ")
    verdict, words = replay.replay_gate(endpoint, candidate(endpoint))
    assert verdict == "failed"
    assert "12 of 12 answers are other than recorded (100.0%, mean distance 0.2); 1.0% is allowed" in words


def test_errors_fail_and_are_counted_by_code(house, endpoint, cast) -> None:
    record(house, endpoint, 5)
    house.replicas["r2"].fault = Fault(0, "model_failed", "no")
    row = run(house, started(endpoint, cast))
    assert (row.requests, row.errors, row.error_counts, row.compared) == (5, 5, {"model_failed": 5}, 0)
    assert replay.replay_gate(endpoint, candidate(endpoint))[0] == "failed"


def test_a_killed_worker_leaves_its_slice_to_the_next_and_counts_nothing_twice(house, endpoint, cast) -> None:
    record(house, endpoint, 40)
    row = started(endpoint, cast)
    killed = replay.claim(str(row.pk))
    assert killed is not None
    assert replay.claim(str(row.pk)) is None
    assert replay.waiting() == []
    asker = replay.Asker("mlp", 2, url=house.gateways[0].url, secret=publish.token_secret(), how=Comparison())
    with replay.ThreadPoolExecutor(2) as pool:
        assert replay._commit(killed, replay._asked(killed, asker, pool))
        half_done = replay._asked(killed, asker, pool)
    Replay.objects.filter(pk=row.pk).update(lease_until=Now() - timedelta(seconds=1))
    assert replay.waiting() == [str(row.pk)]
    row = run(house, row)
    assert (row.status, row.requests, row.compared) == ("done", 40, 40)
    assert not replay._commit(killed, half_done)
    asker.close()
    row.refresh_from_db()
    assert (row.requests, row.cursor) == (40, 40)


def test_a_real_worker_killed_twice_in_the_middle_ends_with_the_same_report(
    house, endpoint, cast, services: Services, tmp_path: Path
) -> None:
    record(house, endpoint, 48)
    url = house.gateways[0].url
    row = replay.start_replay(
        endpoint=endpoint, version=candidate(endpoint), actor=cast.actor("developer"), rate_per_s=24.0
    )
    for goal in (16, 32, 48):
        with celery_worker("jobs", tmp_path, services, redis_url=services.redis_url, SERINUS_GATEWAY_URL=url):
            replay.send(replay.ADVANCE, str(row.pk), queue=replay.QUEUE)
            until(lambda least=goal: Replay.objects.get(pk=row.pk).cursor >= least, 60)
            if goal == 48:
                until(lambda: Replay.objects.get(pk=row.pk).status == "done", 30)
        # the worker is dead, and its lease is over
        Replay.objects.filter(pk=row.pk).update(lease_until=Now() - timedelta(seconds=1))
    row.refresh_from_db()
    assert (row.status, row.requests, row.compared, row.drifted, row.errors) == ("done", 48, 48, 0, 0)
    assert row.fence >= 2


def test_purged_requests_are_skipped_and_a_candidate_without_a_replica_fails_in_time(house, endpoint, cast) -> None:
    record(house, endpoint, 4)
    row = started(endpoint, cast)
    RecordedRequest.objects.filter(pk__in=row.records[:1]).delete()
    row = run(house, row)
    assert (row.requests, row.skipped) == (3, 1)
    Endpoint.objects.all().delete()
    lonely = serving(house, cast, "lonely", MLP, ("r1", ""))
    record(house, lonely, 2)
    row = run(house, started(lonely, cast, deadline_s=1))
    assert (row.status, row.words) == ("failed", "Version 2 had no ready replica in time.")
    assert replay.replay_gate(lonely, candidate(lonely)) == ("failed", row.words)


def test_chats_are_asked_again_through_openais_api(house, cast) -> None:
    signature = public_signature(generation.language_signature(), RuntimeSettings())
    endpoint = serving(house, cast, "lm", signature, ("lm1", "lm2"))
    url = f"{house.gateways[0].url}/v1"
    chat = {
        "model": "lm",
        "messages": [{"role": "user", "content": "one two three"}],
        "temperature": 0,
        "max_tokens": 9,
    }
    tools = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
    tool = chat | {"messages": [{"role": "user", "content": "tool x"}], "tools": tools}
    for path, body in (
        ("chat/completions", chat | {"stream": True}),
        ("chat/completions", tool),
        ("chat/completions", chat | {"temperature": 0.5}),
        ("completions", {"model": "lm", "prompt": "four five", "temperature": 0, "stop": ["nine"]}),
    ):
        assert httpx.post(f"{url}/{path}", json=body, timeout=30).status_code == 200
    arrived(endpoint, 4)
    before = list(house.replicas["lm1"].asked)
    row = run(house, started(endpoint, cast))
    assert (row.status, row.requests, row.errors, row.compared, row.drifted) == ("done", 4, 0, 3, 0)
    again = {(str(one.prompt), str(one.sampling)) for one in house.replicas["lm2"].asked}
    assert again == {(str(one.prompt), str(one.sampling)) for one in before}
    house.replicas["lm2"].words = "something else"
    row = run(house, started(endpoint, cast))
    assert row.drifted == 3
    assert {one["kind"] for one in row.worst} <= {"text", "exact"}


def test_who_may_and_what_is_refused(house, endpoint, cast) -> None:
    with pytest.raises(Conflict, match="nothing is recorded"):
        started(endpoint, cast)
    record(house, endpoint, 1)
    with pytest.raises(Forbidden):
        replay.start_replay(endpoint=endpoint, version=candidate(endpoint), actor=cast.actor("teammate"))
    for wrong in ({"deadline_s": 0}, {"max_drift_share": 2.0}, {"comparison": Comparison(kind="nonsense")}):
        with pytest.raises(InvalidInput):
            started(endpoint, cast, **wrong)
    other = fleet_cast.version("other", of=cast.red)
    with pytest.raises(InvalidInput, match="no version of endpoint"):
        replay.start_replay(endpoint=endpoint, version=other, actor=cast.actor("developer"))
    started(endpoint, cast)
    with pytest.raises(Conflict, match="under way"):
        started(endpoint, cast)
    assert AuditEntry.objects.filter(verb="start_replay").count() == 1


def test_the_control_api(house, endpoint, cast, client) -> None:
    path, who = "/api/endpoints/mlp", cast.bearer("developer")
    told = client.post(f"{path}/recording/", {"share_bp": 500}, "application/json", headers=who)
    assert (told.status_code, told.json()["recording"]) == (200, {"share_bp": 500, "max_bytes": 65_536})
    record(house, endpoint, 3)
    told = client.get(f"{path}/recorded/", headers=cast.bearer("teammate")).json()
    assert (told["requests"], told["bytes"]) == (3, 3 * 80)
    started_row = client.post(f"{path}/replays/", {"version": 2, "kind": "close"}, "application/json", headers=who)
    assert started_row.status_code == 201, started_row.json()
    assert (started_row.json()["verdict"], started_row.json()["total"]) == ("running", 3)
    run(house, Replay.objects.get())
    (listed,) = client.get(f"{path}/replays/", headers=cast.bearer("teammate")).json()
    assert (listed["verdict"], listed["compared"], listed["mean_distance"]) == ("passed", 3, 0.0)
    assert listed["latency"]["replayed"]["p50_ms"] > 0
    stranger = cast.bearer("stranger")
    for verb, method in (("replays", "get"), ("recorded", "get"), ("recorded", "delete")):
        assert getattr(client, method)(f"{path}/{verb}/", headers=stranger).status_code == 404, (verb, method)
    for verb, body in (("recording", {"share_bp": 1}), ("replays", {"version": 2})):
        assert client.post(f"{path}/{verb}/", body, "application/json", headers=stranger).status_code == 404, verb
    assert client.delete(f"{path}/recorded/", headers=cast.bearer("teammate")).status_code == 403
    assert client.delete(f"{path}/recorded/", headers=who).json() == {"deleted": 3}
    assert AuditEntry.objects.filter(verb="purge_recorded").count() == 1
    told = client.post(f"{path}/recording/", {"share_bp": 0}, "application/json", headers=who)
    assert told.json() == {"requests": 0, "bytes": 0, "oldest": None, "newest": None, "recording": None}
