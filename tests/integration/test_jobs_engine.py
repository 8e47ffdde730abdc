"""Batches by a real Celery worker through a real gateway, into the engine of a real replica of a tiny random Llama."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from endpoints import publish
from inference.protocol.generation import language_signature
from inference.protocol.routes import EndpointRoute, ReplicaRoute, VariantRoute
from jobs import store, tasks
from jobs.models import Batch
from jobs.statuses import ENDED, Status
from tests.support import language
from tests.support.batches import begin, line, make_endpoint, read_jsonl
from tests.support.cast import Cast, make_cast
from tests.support.celery_workers import celery_worker
from tests.support.database import Services
from tests.support.gateway_house import House
from tests.support.replica_process import Replica

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]
SEATS = 2
SETTINGS = {"generation": {"max_num_seqs": SEATS, "block_size": 8}}
LONG = {"max_completion_tokens": 150, "ignore_eos": True, "temperature": 0}


@pytest.fixture
def people(transactional_db: None) -> Cast:
    found = make_cast()
    make_endpoint(found.red, "chat")
    return found


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    root = tmp_path_factory.mktemp("engine")
    language.folder(root / "m")
    found = Replica(root / "r", root / "m", "hf_decoder", SETTINGS).ready()
    yield found
    found.close()


@pytest.fixture
def house(people: Cast, replica: Replica) -> Iterator[House]:
    found = House()
    variant = VariantRoute(1, "primary", 10_000, language_signature(), [ReplicaRoute("r1", 1, f"unix:{replica.path}")])
    chat = EndpointRoute("chat", "m", "salt", False, 60_000, 256, [variant])
    table = found.table([variant], endpoints=[chat])
    found.publish(msgspec.structs.replace(table, token_secret=publish.token_secret()))
    found.gateway().wait_live().wait_ready()
    yield found
    found.close()


@pytest.fixture
def worker(house: House, services: Services, tmp_path: Path, settings: Any) -> Callable[[], Any]:
    def start() -> Any:
        return celery_worker(
            "jobs", tmp_path, services, redis_url=services.redis_url,
            SERINUS_GATEWAY_URL=house.gateways[0].url, SERINUS_ARTIFACTS=str(settings.ARTIFACTS_DIR),
        )  # fmt: skip

    return start


def until(what: str, true: Callable[[], object], timeout_s: float = 60.0) -> None:
    end_at, swept = time.monotonic() + timeout_s, 0.0
    while not true():
        assert time.monotonic() < end_at, f"not within {timeout_s} s: {what}: {list(Batch.objects.values())}"
        if time.monotonic() - swept > 1:
            tasks.sweep()
            swept = time.monotonic()
        time.sleep(0.02)


def cursor(batch: Batch) -> int:
    return Batch.objects.values_list("cursor", flat=True).get(pk=batch.pk)


def ended(batch: Batch) -> Batch:
    until("an end", lambda: Batch.objects.filter(pk=batch.pk, status__in=ENDED).exists())
    return Batch.objects.select_related("output_file", "error_file").get(pk=batch.pk)


def said(batch: Batch) -> dict[str, str]:
    assert batch.output_file is not None
    rows = read_jsonl(store.path_of(batch.output_file.public_id).read_bytes())
    return {row["custom_id"]: row["response"]["body"]["choices"][0]["message"]["content"] for row in rows}


def ask(house: House, body: dict[str, Any]) -> str:
    headers = {"Authorization": "Bearer ser_all.s2"}
    answer = httpx.post(f"{house.gateways[0].url}/v1/chat/completions", headers=headers, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def preemptions(house: House) -> float:
    found = re.search(r"^vllm:num_preemptions_total{.*} (.*)$", house.gateways[0].get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_lines_say_what_live_requests_say_though_workers_and_gateways_die(
    people: Cast, house: House, worker: Any
) -> None:
    lines = [
        line(n, text=f"canary {n % 7}", max_completion_tokens=40, ignore_eos=True, temperature=0) for n in range(90)
    ]
    wanted = [ask(house, lines[n]["body"]) for n in range(7)]
    batch = begin(people.key_actor("developer"), lines)
    gateway = house.gateways[0]
    with worker() as process:
        until("some lines", lambda: cursor(batch) >= 10)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    gateway.stop(signal.SIGKILL)
    seen = cursor(batch)
    assert seen < 90, "the batch was over before anything died"
    with worker():
        house.gateway(SERINUS_HTTP_PORT=str(gateway.port))
        done = ended(batch)
    assert (done.status, done.completed, done.failed) == (Status.COMPLETED, 90, 0)
    assert said(done) == {f"id-{n}": wanted[n % 7] for n in range(90)}


def test_live_requests_pass_the_lines_of_a_batch(people: Cast, house: House, worker: Any) -> None:
    lines = [line(n, text=f"canary {n}", **LONG) for n in range(60)]
    live = {"model": "chat", "messages": [{"role": "user", "content": "two and two"}], **LONG}
    alone = ask(house, live)
    batch = begin(people.key_actor("developer"), lines)
    before = preemptions(house)
    with worker():
        until("a full engine", lambda: cursor(batch) >= 12)
        passed = []
        for _ in range(4):
            first = cursor(batch)
            assert ask(house, live) == alone
            passed.append(cursor(batch) - first)
        assert cursor(batch) < 60, "the batch was over before the live requests were"
        until("the preemptions are told", lambda: preemptions(house) > before, 10)
        assert min(passed) <= 2 * SEATS, f"live requests waited for {passed} lines"
        done = ended(batch)
    assert (done.completed, done.failed) == (60, 0)
