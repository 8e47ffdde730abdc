"""Recorded requests asked again of a version that has no traffic, and compared with the answers that they got then.

A replay runs in slices, each a short Celery task that holds a lease: a worker that is killed leaves its slice to the
next one, which goes on at the cursor. What a slice found is written with the cursor in one update, and only by the
holder of the newest fence, so no request is counted twice.
"""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from datetime import timedelta
from typing import Any

import msgspec
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models.functions import Now

from accounts.audit import record
from accounts.permissions import Actor, Verb, require
from accounts.wakeups import send, send_on_commit
from endpoints.models import Endpoint
from endpoints.publish import token_secret
from endpoints.steering import set_recording
from inference.errors import Conflict, InvalidInput
from inference.protocol import records
from inference.protocol.compare import KINDS
from inference.protocol.routes import WEIGHT_TOTAL_BP, Comparison, Recording
from registry.models import Version
from rollouts.replay_asking import Asker
from rollouts.replay_models import Replay
from rollouts.replay_report import Asked, Report, judged
from telemetry import shadows
from telemetry.models import RecordedRequest

ADVANCE = "rollouts.tasks.advance_replay"
QUEUE = "jobs"  # slices of seconds: never in front of the controller's ticks
LEASE_S = 60
SLICE_S = 8.0
CHUNK = 16
CONCURRENCY = 4
REST_S = 2.0
MAX_RATE_PER_S = 200.0
MAX_DEADLINE_S = 3600
MAX_REPLAYS_KEPT = 100
GATE_S = 24 * 3600
ACTIVE = (Replay.Status.WAITING, Replay.Status.RUNNING)
_SUMS = tuple(field.name for field in fields(Report))


# -- what people do ------------------------------------------------------------------------------------------------


def record_requests(*, endpoint: Endpoint, actor: Actor, share_bp: int, max_bytes: int = 65_536) -> Endpoint:
    """Keeps `share_bp` of the endpoint's requests from now on; 0 ends it. Raises Forbidden, InvalidInput."""
    require(actor, Verb.DEPLOY, endpoint)
    if not 0 <= share_bp <= WEIGHT_TOTAL_BP:
        raise InvalidInput(f"share_bp must be 0 (off) to {WEIGHT_TOTAL_BP} basis points")
    if not 1 <= max_bytes <= records.MAX_RECORD_BYTES:
        raise InvalidInput(f"max_bytes must be 1 to {records.MAX_RECORD_BYTES}")
    recording = Recording(share_bp, max_bytes) if share_bp else None
    return set_recording(endpoint=endpoint, recording=recording, actor=actor)


@transaction.atomic
def purge_recorded(*, endpoint: Endpoint, actor: Actor) -> int:
    """Deletes what was recorded of this endpoint; answers how many requests. Raises Forbidden."""
    require(actor, Verb.DEPLOY, endpoint)
    count = shadows.purge(endpoint.name)
    record(actor, "purge_recorded", "endpoint", endpoint.name, team=endpoint.team, before={"recorded": count})
    return count


@transaction.atomic
def start_replay(
    *,
    endpoint: Endpoint,
    version: Version,
    actor: Actor,
    comparison: Comparison | None = None,
    requests: int = 1000,
    rate_per_s: float = 20.0,
    deadline_s: int = 600,
    max_drift_share: float = 0.01,
) -> Replay:
    """Asks the endpoint's newest recorded requests of `version` again, the oldest of them first.

    Raises Forbidden, InvalidInput, and Conflict when nothing is recorded or such a replay is under way.
    """
    require(actor, Verb.DEPLOY, endpoint)
    how = comparison or Comparison()
    _check(how, rate_per_s, deadline_s, max_drift_share)
    if version.model_id != endpoint.model_id:
        raise InvalidInput(f"version {version.number} is no version of endpoint '{endpoint.name}'")
    rows = RecordedRequest.objects.filter(endpoint=endpoint.name).order_by("-at", "-id")
    chosen = list(rows.values_list("id", flat=True)[: max(1, min(requests, shadows.RECORDS_KEPT))])[::-1]
    if not chosen:
        raise Conflict(f"nothing is recorded of endpoint '{endpoint.name}': switch its recording on and wait a little")
    try:
        with transaction.atomic():
            found = Replay.objects.create(
                endpoint=endpoint, endpoint_name=endpoint.name, team=endpoint.team, candidate=version,
                comparison=msgspec.to_builtins(how), max_drift_share=max_drift_share, rate_per_s=rate_per_s,
                records=chosen, total=len(chosen), creator=actor.name, created_at=Now(),
                deadline_at=Now() + timedelta(seconds=deadline_s),
            )  # fmt: skip
    except IntegrityError:
        raise Conflict(f"version {version.number} of '{endpoint.name}' has a replay under way") from None
    after = {"version": version.number, "requests": len(chosen)}
    record(actor, "start_replay", "endpoint", endpoint.name, team=endpoint.team, after=after)
    _forget_old(endpoint)
    send_on_commit(ADVANCE, str(found.pk), queue=QUEUE)
    found.refresh_from_db()
    return found


def _check(how: Comparison, rate_per_s: float, deadline_s: int, max_drift_share: float) -> None:
    if how.kind not in KINDS:
        raise InvalidInput(f"kind must be one of {', '.join(KINDS)}")
    if not (0 <= how.tolerance <= 1 and 1 <= how.k <= 1000):
        raise InvalidInput("tolerance must be 0 to 1, k 1 to 1000")
    if not 0 < rate_per_s <= MAX_RATE_PER_S:
        raise InvalidInput(f"rate_per_s must be above 0 and at most {MAX_RATE_PER_S:g}")
    if not 1 <= deadline_s <= MAX_DEADLINE_S:
        raise InvalidInput(f"deadline_s must be 1 to {MAX_DEADLINE_S}")
    if not 0 <= max_drift_share <= 1:
        raise InvalidInput("max_drift_share must be 0 to 1")


def _forget_old(endpoint: Endpoint) -> None:
    old = Replay.objects.filter(endpoint=endpoint).exclude(status__in=ACTIVE).order_by("-created_at")
    Replay.objects.filter(pk__in=list(old.values_list("pk", flat=True)[MAX_REPLAYS_KEPT:])).delete()


def report_of(replay: Replay) -> Report:
    return Report(**{name: getattr(replay, name) for name in _SUMS})


def replay_gate(endpoint: Endpoint, version: Version) -> tuple[str, str]:
    """("passed" | "failed" | "no_data", in words) of the newest replay of the last day that has ended."""
    rows = Replay.objects.filter(endpoint=endpoint, candidate=version, created_at__gt=Now() - timedelta(seconds=GATE_S))
    found = rows.exclude(status__in=ACTIVE).order_by("-created_at").first()
    if found is None:
        return "no_data", "No replay of recorded requests has ended in the last day."
    if found.status == Replay.Status.FAILED:
        return "failed", found.words
    return judged(report_of(found), found.max_drift_share)


# -- what workers do -----------------------------------------------------------------------------------------------


def waiting() -> list[str]:
    """Keys of replays that go on but that nobody holds."""
    rows = Replay.objects.filter(status__in=ACTIVE).exclude(lease_until__gt=Now())
    return [str(key) for key in rows.order_by("created_at").values_list("pk", flat=True)[:50]]


@transaction.atomic
def claim(key: str) -> Replay | None:
    """The replay under the next fence; None while somebody holds it, and when it has ended."""
    rows = Replay.objects.select_for_update(of=("self",)).filter(pk=uuid.UUID(key), status__in=ACTIVE)
    row = rows.exclude(lease_until__gt=Now()).first()
    if row is None:
        return None
    lease = Now() + timedelta(seconds=LEASE_S)
    Replay.objects.filter(pk=row.pk).update(fence=row.fence + 1, lease_until=lease, status=Replay.Status.RUNNING)
    return Replay.objects.select_related("candidate", "endpoint").get(pk=row.pk)


def advance(key: str, *, gateway_url: str = "") -> bool:
    """One slice of the replay; answers whether it was this message that did it."""
    held = claim(key)
    if held is None:
        return False
    if held.endpoint is None:
        _end(held, Replay.Status.FAILED, "The endpoint was deleted.")
        return True
    asker = Asker(
        held.endpoint_name, held.candidate.number, url=gateway_url or settings.GATEWAY_URL, secret=token_secret(),
        how=msgspec.convert(held.comparison, Comparison),
    )  # fmt: skip
    try:
        goes_on = _slice(held, asker)
    finally:
        asker.close()
    if goes_on:
        send(ADVANCE, key, queue=QUEUE)
    return True


def _slice(held: Replay, asker: Asker) -> bool:
    """Chunks of requests until the slice's time is over; whether the next one may follow at once."""
    until = time.monotonic() + SLICE_S
    if held.cursor < held.total and not asker.is_ready():
        if _is_over(held):
            _end(held, Replay.Status.FAILED, f"Version {held.candidate.number} had no ready replica in time.")
        else:
            _release(held, rest_s=REST_S)
        return False
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        while held.cursor < held.total:
            if _is_over(held):
                _end(held, Replay.Status.FAILED, f"Time was over after {held.cursor} of {held.total} requests.")
                return False
            if time.monotonic() >= until:
                _release(held)
                return True
            if not _commit(held, _asked(held, asker, pool)):
                return False
    _end(held, Replay.Status.DONE, judged(report_of(held), held.max_drift_share)[1])
    return False


def _asked(held: Replay, asker: Asker, pool: ThreadPoolExecutor) -> list[Asked]:
    """The next requests, begun no faster than the rate says."""
    chosen = held.records[held.cursor : held.cursor + CHUNK]
    rows = {row.pk: bytes(row.record) for row in RecordedRequest.objects.filter(pk__in=chosen)}
    began, futures = time.monotonic(), []
    for place, key in enumerate(chosen):
        time.sleep(max(0.0, began + place / held.rate_per_s - time.monotonic()))
        futures.append(pool.submit(_ask, asker, key, rows.get(key)))
    found = [future.result() for future in futures]
    time.sleep(max(0.0, began + len(chosen) / held.rate_per_s - time.monotonic()))
    return found


def _ask(asker: Asker, key: int, data: bytes | None) -> Asked:
    if data is None:
        return Asked(key, skipped="it is not kept any more")
    try:
        found = records.decode(data)
    except msgspec.MsgspecError:
        return Asked(key, skipped="it cannot be read any more")
    return asker.ask(key, found)


def _commit(held: Replay, found: list[Asked]) -> bool:
    """Moves the cursor with all that was found; False when somebody else holds the replay by now."""
    report = report_of(held)
    for asked in found:
        report.add(asked)
    told: dict[str, Any] = asdict(report)
    mine = Replay.objects.filter(pk=held.pk, fence=held.fence, cursor=held.cursor, status=Replay.Status.RUNNING)
    lease = Now() + timedelta(seconds=LEASE_S)
    if not mine.update(cursor=held.cursor + len(found), lease_until=lease, **told):
        return False
    held.cursor += len(found)
    for name, value in told.items():
        setattr(held, name, value)
    return True


def _is_over(held: Replay) -> bool:
    return Replay.objects.filter(pk=held.pk, deadline_at__lte=Now()).exists()


def _release(held: Replay, *, rest_s: float = 0.0) -> None:
    rest = Now() + timedelta(seconds=rest_s) if rest_s else None
    Replay.objects.filter(pk=held.pk, fence=held.fence, status=Replay.Status.RUNNING).update(lease_until=rest)


def _end(held: Replay, status: Replay.Status, words: str) -> None:
    mine = Replay.objects.filter(pk=held.pk, fence=held.fence, status=Replay.Status.RUNNING)
    mine.update(status=status, words=words[:500], finished_at=Now(), lease_until=None)
