"""Batches run by real Celery workers against a far end with faults: nothing is lost, nothing stands twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from django.db.models import F
from django.db.models.functions import Now

from accounts import actions as accounts
from accounts.models import ApiKey, AuditEntry
from accounts.permissions import SYSTEM, Actor
from jobs import actions, files, leases, store, tasks
from jobs.models import Batch, File
from jobs.statuses import ENDED, Status
from tests.support.batches import URLS, FarEnd, begin, far_end, line, make_endpoint, read_jsonl
from tests.support.cast import Cast, make_cast
from tests.support.celery_workers import celery_worker
from tests.support.database import Services

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]


@pytest.fixture
def people(transactional_db: None) -> Cast:
    found = make_cast()
    make_endpoint(found.red, "chat")
    make_endpoint(found.red, "other")
    make_endpoint(found.blue, "foreign")
    return found


@pytest.fixture
def end(people: Cast) -> Iterator[FarEnd]:
    with far_end() as found:
        yield found


@pytest.fixture
def maker(people: Cast) -> Actor:
    return people.key_actor("developer")


@pytest.fixture
def worker(end: FarEnd, services: Services, tmp_path: Path, settings: Any) -> Callable[[], Any]:
    """Starts a worker of the queue `jobs`, on this test's rows, files and far end."""

    def start() -> Any:
        return celery_worker(
            "jobs",
            tmp_path,
            services,
            redis_url=services.redis_url,
            SERINUS_GATEWAY_URL=end.url,
            SERINUS_ARTIFACTS=str(settings.ARTIFACTS_DIR),
        )

    return start


def until(what: str, true: Callable[[], object], timeout_s: float = 60.0) -> Any:
    """Waits as beat would: the sweep runs every second."""
    end_at, swept = time.monotonic() + timeout_s, 0.0
    while time.monotonic() < end_at:
        if time.monotonic() - swept > 1:
            tasks.sweep()
            swept = time.monotonic()
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s} s: {what}: {list(Batch.objects.values())}")


def ended(batch: Batch, timeout_s: float = 60.0) -> Batch:
    until("an end", lambda: Batch.objects.filter(pk=batch.pk, status__in=ENDED).exists(), timeout_s)
    return Batch.objects.select_related("output_file", "error_file").get(pk=batch.pk)


def content(file: File | None) -> list[dict[str, Any]]:
    return read_jsonl(store.path_of(file.public_id).read_bytes()) if file else []


def here(end: FarEnd, settings: Any) -> None:
    """Lets this very process be the worker: steps are called, not sent."""
    settings.GATEWAY_URL = end.url


def drive(batch: Batch, steps: int = 20) -> Batch:
    for _ in range(steps):
        Batch.objects.filter(pk=batch.pk).update(resume_at=None)
        if not tasks.advance(batch.pk):
            break
    return Batch.objects.select_related("output_file", "error_file").get(pk=batch.pk)


@pytest.mark.parametrize("url", URLS)
def test_every_line_is_answered_once_in_order_at_low_priority(
    url: str, maker: Actor, end: FarEnd, settings: Any
) -> None:
    here(end, settings)
    batch = begin(maker, [line(n, url=url) for n in range(30)], endpoint=url)
    done = drive(batch)
    assert (done.status, done.total, done.completed, done.failed) == (Status.COMPLETED, 30, 30, 0)
    rows = content(done.output_file)
    assert [row["custom_id"] for row in rows] == [f"id-{n}" for n in range(30)]
    assert len({row["id"] for row in rows}) == 30
    assert all(row["response"]["status_code"] == 200 and row["error"] is None for row in rows)
    assert done.error_file is None
    assert {call.path for call in end.calls} == {url}
    assert {call.headers["X-Priority"] for call in end.calls} == {"100"}
    assert {call.body.get("priority") for call in end.calls} == ({None} if url == "/v1/embeddings" else {100})
    assert {(call.claims["e"], call.claims["s"]) for call in end.calls} == {("chat", "batch")}
    assert not store.journals_of(batch.public_id).exists()
    verbs = list(AuditEntry.objects.filter(object_name=batch.public_id).order_by("pk").values_list("verb", flat=True))
    assert verbs == ["create_batch", "end_batch"]


def test_faults_of_lines_are_told_apart(maker: Actor, end: FarEnd, settings: Any) -> None:
    here(end, settings)
    faults = {"line 1": "400", "line 2": "drop", "line 3": "500", "line 5": "404"}
    once = {"line 6": "drop", "line 7": "502", "line 8": "half", "line 9": "503 0", "line 10": "429"}
    end.fault = lambda text, before: faults.get(text) or (once.get(text) if before == 0 else None)
    done = drive(begin(maker, [line(n) for n in range(12)]))
    assert (done.status, done.completed, done.failed) == (Status.COMPLETED, 8, 4)
    good, bad = content(done.output_file), {row["custom_id"]: row for row in content(done.error_file)}
    assert [row["custom_id"] for row in good] == [f"id-{n}" for n in (0, 4, 6, 7, 8, 9, 10, 11)]
    assert list(bad) == ["id-1", "id-2", "id-3", "id-5"]
    assert bad["id-1"]["response"]["status_code"] == 400
    assert bad["id-1"]["response"]["body"]["error"]["message"] == "as asked: 400"
    assert bad["id-2"]["error"] == {"code": "server_error", "message": "The connection was lost."}
    assert bad["id-3"]["response"]["status_code"] == 500
    assert [end.asked(f"line {n}") for n in (1, 2, 3, 5, 6, 9)] == [1, 3, 3, 1, 2, 2]


def test_scopes_hold_for_each_line(people: Cast, end: FarEnd, settings: Any) -> None:
    here(end, settings)
    narrow = people.key_actor("developer", endpoints=["chat"])
    models = ["chat", "other", "foreign", "nothing", "chat:adapter"]
    done = drive(begin(narrow, [line(n, model=model) for n, model in enumerate(models)]))
    assert (done.completed, done.failed) == (2, 3)
    assert [row["response"]["body"]["error"]["code"] for row in content(done.error_file)] == ["model_not_found"] * 3
    assert {call.claims["e"] for call in end.calls} == {"chat"}


def test_a_bad_file_fails_with_a_list_of_what_is_wrong(maker: Actor, end: FarEnd, settings: Any) -> None:
    here(end, settings)
    lines = [line(0), line(0), line(2, url="/v1/embeddings")]
    done = drive(begin(maker, lines))
    assert done.status == Status.FAILED
    assert [(one["code"], one["line"], one["param"]) for one in done.errors] == [
        ("duplicate_custom_id", 2, "custom_id"),
        ("mismatched_url", 3, "url"),
    ]
    assert end.calls == []


def test_a_refusing_gateway_gets_fewer_lines_and_the_time_it_asks_for(maker: Actor, end: FarEnd, settings: Any) -> None:
    here(end, settings)
    end.delay_s = 0.01
    busy_until = [0.0]

    def fault(text: str, before: int) -> str | None:
        if text == "line 30" and not before:
            busy_until[0] = time.monotonic() + 1.0
        return "503 1" if time.monotonic() < busy_until[0] else None

    end.fault = fault
    done = drive(begin(maker, [line(n) for n in range(150)]))
    assert (done.completed, done.failed) == (150, 0)
    assert len({row["custom_id"] for row in content(done.output_file)}) == 150
    refused = [call.at for call in end.calls if call.at < busy_until[0]]
    times = sorted(call.at for call in end.calls)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps) > 0.9, "it did not wait as it was asked"
    assert len(refused) < 80
    assert end.most_inflight <= 32


def test_a_keys_rate_is_kept(people: Cast, end: FarEnd, settings: Any) -> None:
    here(end, settings)
    slow = people.key_actor("developer", requests_per_s=20.0)
    began = time.monotonic()
    assert drive(begin(slow, [line(n) for n in range(31)])).completed == 31
    assert time.monotonic() - began >= 1.4


def test_a_revoked_key_stops_its_batch(maker: Actor, end: FarEnd, settings: Any) -> None:
    here(end, settings)
    batch = begin(maker, [line(n) for n in range(5)])
    tasks.advance(batch.pk)
    accounts.revoke_key(actor=SYSTEM, key=ApiKey.objects.get(pk=maker.key.pk if maker.key else ""))
    done = drive(batch)
    assert (done.status, end.calls) == (Status.CANCELLED, [])
    assert [one["code"] for one in done.errors] == ["access_revoked"]
    assert [row["error"]["code"] for row in content(done.error_file)] == ["batch_cancelled"] * 5


def test_a_closed_window_keeps_what_is_done(maker: Actor, end: FarEnd, settings: Any) -> None:
    here(end, settings)
    end.fault = lambda text, before: "503 30" if text == "line 4" else None
    batch = begin(maker, [line(n) for n in range(8)], window="1h")
    for _ in range(2):
        tasks.advance(batch.pk)
    Batch.objects.filter(pk=batch.pk).update(expires_at=Now(), resume_at=None)
    done = drive(batch)
    assert done.status == Status.EXPIRED
    good, bad = content(done.output_file), content(done.error_file)
    assert [row["custom_id"] for row in good + bad] == [f"id-{n}" for n in range(8)]
    assert {row["error"]["code"] for row in bad} == {"batch_expired"}
    assert done.completed == len(good) == 4
    assert done.failed == len(bad)


def test_a_frozen_holder_that_wakes_up_writes_nothing(maker: Actor, end: FarEnd, settings: Any) -> None:
    here(end, settings)
    batch = begin(maker, [line(n) for n in range(5)])
    tasks.advance(batch.pk)
    old = leases.claim(batch.pk)
    assert old is not None
    assert leases.claim(batch.pk) is None
    Batch.objects.filter(pk=batch.pk).update(lease_until=Now() - timedelta(seconds=1))
    done = drive(batch)
    assert done.status == Status.COMPLETED
    for late in (
        lambda: leases.commit(old, leases.Progress(0, 5, 0, 100)),
        lambda: leases.renew(old),
        lambda: leases.move(old, Status.FINALIZING),
    ):
        with pytest.raises(leases.LeaseLost):
            late()
    assert not leases.release(old)
    assert Batch.objects.get(pk=batch.pk).completed == 5


def test_steps_that_keep_failing_end_the_batch(maker: Actor, end: FarEnd, settings: Any) -> None:
    here(end, settings)
    batch = begin(maker, [line(0)])
    tasks.advance(batch.pk)
    store.path_of(batch.input_file_name).unlink()
    done = drive(batch, steps=25)
    assert (done.status, done.errors[0]["code"]) == (Status.FAILED, "server_error")


def test_a_worker_killed_in_the_middle_loses_no_line_and_doubles_none(maker: Actor, end: FarEnd, worker: Any) -> None:
    end.delay_s = 0.05
    batch = begin(maker, [line(n) for n in range(400)])
    kills = 0
    for share in (0.1, 0.4, 0.7):
        with worker() as process:
            until("some lines", lambda wanted=share * 400: Batch.objects.get(pk=batch.pk).cursor >= wanted)
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        held = Batch.objects.get(pk=batch.pk)
        assert held.status == Status.IN_PROGRESS
        # the lease would lapse by itself; the test does not wait for it
        Batch.objects.filter(pk=batch.pk).update(lease_until=Now() - timedelta(seconds=1))
    with worker():
        done = ended(batch)
    assert kills == 3
    assert (done.status, done.completed, done.failed) == (Status.COMPLETED, 400, 0)
    rows = content(done.output_file)
    assert [row["custom_id"] for row in rows] == [f"id-{n}" for n in range(400)]
    assert all(
        row["response"]["body"]["choices"][0]["message"]["content"] == f"echo line {n}" for n, row in enumerate(rows)
    )
    again = len(end.calls) - 400
    assert 0 <= again <= 3 * 64, f"{again} lines were asked again"


def test_a_worker_that_is_stopped_hands_its_batch_over(maker: Actor, end: FarEnd, worker: Any) -> None:
    end.delay_s = 0.2
    batch = begin(maker, [line(n) for n in range(100)])
    with worker() as process:
        until("some lines", lambda: Batch.objects.get(pk=batch.pk).cursor >= 8)
        process.send_signal(signal.SIGTERM)
        process.wait(15)
        held = Batch.objects.get(pk=batch.pk)
        assert (held.status, held.lease_until) == (Status.IN_PROGRESS, None)
        asked = len(end.calls)
        assert held.cursor == asked, "what was on its way was waited for"
    with worker():
        done = ended(batch)
    assert (done.completed, len(end.calls)) == (100, 100)


def test_a_frozen_worker_is_overtaken_and_writes_nothing_more(maker: Actor, end: FarEnd, worker: Any) -> None:
    end.delay_s = 0.1
    batch = begin(maker, [line(n) for n in range(150)])
    with worker() as frozen:
        until("some lines", lambda: Batch.objects.get(pk=batch.pk).cursor >= 10)
        frozen.send_signal(signal.SIGSTOP)
        Batch.objects.filter(pk=batch.pk).update(lease_until=Now() - timedelta(seconds=1))
        with worker():
            until("the other one", lambda: Batch.objects.get(pk=batch.pk).cursor >= 60)
            frozen.send_signal(signal.SIGCONT)
            done = ended(batch)
    assert (done.status, done.completed) == (Status.COMPLETED, 150)
    assert [row["custom_id"] for row in content(done.output_file)] == [f"id-{n}" for n in range(150)]


def test_a_lapsed_lease_is_found_without_help(maker: Actor, end: FarEnd, worker: Any) -> None:
    batch = begin(maker, [line(n) for n in range(10)])
    held = leases.claim(batch.pk)
    assert held is not None
    Batch.objects.filter(pk=batch.pk).update(lease_until=Now() + timedelta(seconds=3))
    with worker():
        done = ended(batch, 30)
    assert (done.status, done.completed) == (Status.COMPLETED, 10)


def test_cancelling_stops_within_seconds(maker: Actor, end: FarEnd, worker: Any) -> None:
    end.delay_s = 0.2
    end.fault = lambda text, before: "wait 30" if text == "line 10" else None
    batch = begin(maker, [line(n) for n in range(200)])
    with worker():
        until("line 10 on its way", lambda: end.asked("line 10"))
        asked = time.monotonic()
        assert actions.cancel_batch(actor=maker, batch=batch).status == Status.CANCELLING
        done = ended(batch, 20)
        assert time.monotonic() - asked < 6
    assert done.status == Status.CANCELLED
    rows = content(done.output_file) + content(done.error_file)
    assert sorted(row["custom_id"] for row in rows) == sorted(f"id-{n}" for n in range(200))
    assert done.completed >= 4
    assert done.completed + done.failed == 200


def test_a_gateway_that_is_away_is_waited_for(maker: Actor, end: FarEnd, settings: Any) -> None:
    settings.GATEWAY_URL = "http://127.0.0.1:1"
    batch = begin(maker, [line(n) for n in range(5)])
    for _ in range(3):
        tasks.advance(batch.pk)
        Batch.objects.filter(pk=batch.pk).update(resume_at=None)
    held = Batch.objects.get(pk=batch.pk)
    assert (held.status, held.cursor, held.failed) == (Status.IN_PROGRESS, 0, 0)
    here(end, settings)
    assert drive(batch).completed == 5


def test_old_files_go(maker: Actor, end: FarEnd, settings: Any) -> None:
    here(end, settings)
    batch = begin(maker, [line(0)])
    File.objects.update(expires_at=F("created_at") - timedelta(days=1))
    assert files.expire_files() == 0, "a batch still reads it"
    drive(batch)
    assert files.expire_files() == 1
    assert not store.path_of(batch.input_file_name).exists()
    shown = Batch.objects.select_related("output_file").get(pk=batch.pk)
    assert shown.output_file is not None
    assert store.path_of(shown.output_file.public_id).exists()
