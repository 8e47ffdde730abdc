"""The reconciler of rollouts: each tick brings every active one as far as its plan and what is seen allow.

A tick holds a rollout by a lease with a fencing token; every write checks the token under the row's lock, so one that
slept through its lease writes nothing. A transition is one transaction, so a kill at any point leaves either the state
before it or the state after it, and the next tick goes on from there. Time comes from a clock that tests replace.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

import msgspec
from django.db import DatabaseError, InterfaceError, connection, transaction
from django.db.models import Q
from django.db.models.functions import Now

from accounts.wakeups import send_on_commit
from endpoints.actions import want_replicas
from endpoints.models import Endpoint, Variant
from inference.errors import SerinusError
from inference.protocol.routes import Match
from registry.models import Version
from rollouts.facts import Decision, Facts, State, Verdict
from rollouts.models import Reading, Rollout
from rollouts.phases import ACTIVE, FINAL, ON_THE_WAY, Phase, Reason
from rollouts.plans import Plan, Traffic
from rollouts.stepping import decide
from rollouts.watching import seen
from rollouts.writing import AUTOPILOT, locked, move, plan_of

SMOKE = "rollouts.tasks.smoke"
LEASE = timedelta(seconds=10)
SMOKE_AGAIN = timedelta(seconds=90)
READING_EVERY = timedelta(seconds=5)
READINGS_KEPT = 2000
MOVES_PER_TICK = 24
OWNER = f"{socket.gethostname()[:60]}:{os.getpid()}"
log = logging.getLogger(__name__)


class Judging(Protocol):
    """What judges a rollout's traffic so far (rollouts.judging); "none" while there is nothing to judge."""

    def __call__(self, rollout: Rollout, plan: Plan, crashes: int, now: datetime) -> Judged: ...


class Judged(Protocol):
    """A judgement of one moment. `verdict(since)`: for a step that began then; record: as it is shown and kept."""

    @property
    def record(self) -> dict[str, Any] | None: ...

    def verdict(self, since: datetime, of: str) -> Verdict: ...


class LeaseLost(Exception):
    """Somebody else holds this rollout now."""


def database_now() -> datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        found: datetime = cursor.fetchone()[0]
    return found


class Controller:
    """Ticks. clock: the time of transitions; judging: see Judging; owner: who holds the leases."""

    def __init__(
        self,
        judging: Judging,
        *,
        clock: Callable[[], datetime] = database_now,
        owner: str = OWNER,
    ) -> None:
        self._judging = judging
        self._clock = clock
        self._owner = owner

    def tick(self) -> int:
        """Answers how many transitions were written. One rollout's trouble does not stop the others'."""
        done = 0
        for pk in list(Rollout.objects.filter(phase__in=ACTIVE).order_by("created_at").values_list("pk", flat=True)):
            try:
                done += self.advance(pk)
            except SerinusError as error:
                log.warning("rollout %s waits: %s", pk, error)
            except LeaseLost:
                log.info("rollout %s is held by somebody else now", pk)
            except (DatabaseError, InterfaceError):
                raise
            except Exception:
                log.exception("rollout %s cannot be moved", pk)
        return done + self.tidy()

    def advance(self, pk: UUID) -> int:
        """As many transitions of one rollout as are due now; answers how many. 0 while somebody else holds it."""
        fence = self._claim(pk)
        if fence is None:
            return 0
        try:
            judged = self._judge(pk, fence)
            done = 0
            while done < MOVES_PER_TICK and self._move(pk, fence, judged):
                done += 1
            return done
        finally:
            Rollout.objects.filter(pk=pk, fence=fence).update(lease_until=None)

    def tidy(self) -> int:
        """Puts away versions that were replaced: warm, then one replica, then none. Answers how many moved on."""
        now = self._clock()
        rows = Rollout.objects.filter(old_stage__in=["warm", "parked"], old_until__lte=now, phase__in=FINAL)
        return sum(_put_away(pk, now) for pk in list(rows.values_list("pk", flat=True)[:100]))

    def _claim(self, pk: UUID) -> int | None:
        """The fencing token of a new lease; None while somebody holds an older one, or the rollout has ended."""
        free = Q(lease_until__isnull=True) | Q(lease_until__lte=Now())
        with transaction.atomic():
            row = Rollout.objects.select_for_update(skip_locked=True).filter(free, pk=pk, phase__in=ACTIVE).first()
            if row is None:
                return None
            fence = row.fence + 1
            Rollout.objects.filter(pk=pk).update(fence=fence, lease_owner=self._owner, lease_until=Now() + LEASE)
        return fence

    def _judge(self, pk: UUID, fence: int) -> Judged | None:
        """Judges the traffic so far and keeps the figures; None in a phase without traffic."""
        rows = Rollout.objects.select_related("endpoint", "stable", "candidate").filter(pk=pk, fence=fence)
        rollout = rows.first()
        if rollout is None:
            raise LeaseLost
        if Phase(rollout.phase) not in ON_THE_WAY | {Phase.PROMOTING} or rollout.judged_from is None:
            return None
        now = self._clock()
        crashes = max(0, seen(rollout.candidate).crashes - rollout.crashes_before)
        judged = self._judging(rollout, plan_of(rollout), crashes, now)
        if judged.record is not None:
            if not Rollout.objects.filter(pk=pk, fence=fence).update(judgement=judged.record, judged_at=now):
                raise LeaseLost
            _keep_reading(rollout, judged.record, now)
        return judged

    @transaction.atomic
    def _move(self, pk: UUID, fence: int, judged: Judged | None) -> bool:
        """One transition; False when none is due. Raises LeaseLost, Conflict."""
        rollout = locked(pk)
        if rollout.fence != fence:
            raise LeaseLost
        now = self._clock()
        if rollout.endpoint is None or not _has_both(rollout.endpoint, rollout):
            return self._gone(rollout, now)
        plan = plan_of(rollout)
        state = state_of(rollout)
        decision = decide(plan, state, facts_of(rollout, plan, judged, now))
        if decision.is_nothing:
            return False
        return _carry_out(rollout, state, decision, now)

    def _gone(self, rollout: Rollout, now: datetime) -> bool:
        """Its endpoint was deleted, or a version is no longer behind it: nothing is left to move."""
        if rollout.phase in FINAL:
            return False
        rollout.endpoint = None
        for phase in (Phase.ABORTING, Phase.FAILED):
            if Phase(rollout.phase) is not phase:
                move(rollout, actor=AUTOPILOT, now=now, kind="gone", reason=Reason.GONE, phase=phase, words="Its endpoint is gone.")  # fmt: skip
        return True


def state_of(rollout: Rollout) -> State:
    """The row as a value. What was written of rules is what the endpoint says."""
    steering = (rollout.endpoint.steering if rollout.endpoint is not None else None) or {}
    return State(
        phase=Phase(rollout.phase),
        step=rollout.step,
        step_at=rollout.step_at.timestamp(),
        phase_at=rollout.phase_at.timestamp(),
        weight_bp=rollout.weight_bp,
        mirror_bp=rollout.mirror_bp,
        match=tuple(msgspec.convert(steering.get("match", []), list[Match])),
        capacity=rollout.capacity,
        candidate_before=rollout.candidate_before,
        held=rollout.held,
        approvals=len(rollout.approvals),
        has_had_traffic=rollout.judged_from is not None,
        is_rollback=rollout.is_rollback,
        reason=Reason(rollout.reason),
    )


def facts_of(rollout: Rollout, plan: Plan, judged: Judged | None, now: datetime) -> Facts:
    stable, canary = seen(rollout.stable), seen(rollout.candidate)
    smoke = rollout.smoke
    step = plan.steps[rollout.step] if rollout.step < len(plan.steps) else None
    return Facts(
        now=now.timestamp(),
        stable_ready=stable.ready,
        stable_wanted=stable.wanted,
        stable_running=stable.running,
        canary_ready=canary.ready,
        canary_wanted=canary.wanted,
        crashes=max(0, canary.crashes - rollout.crashes_before),
        load_error=canary.error,
        canary_message=canary.message,
        smoke=(bool(smoke["passed"]), str(smoke["words"])) if smoke else None,
        verdict=judged.verdict(rollout.step_at, getattr(step, "of", "live")) if judged is not None else Verdict(),
    )


def _carry_out(rollout: Rollout, state: State, decision: Decision, now: datetime) -> bool:
    """Writes a decision; answers whether another one may follow at once."""
    if decision.ask_smoke:
        return _ask_smoke(rollout, now)
    if decision.stable_replicas is not None:
        want_replicas(rollout.stable, decision.stable_replicas, rollout.device)
    if decision.canary_replicas is not None:
        want_replicas(rollout.candidate, decision.canary_replicas, rollout.device)
    if not (decision.words or decision.phase or decision.traffic or decision.step is not None):
        return True
    fields: dict[str, Any] = {}
    if decision.phase is Phase.SUCCEEDED and decision.traffic == Traffic(10_000):
        fields = _replaced(rollout, now)
    if state.phase is Phase.SMOKE and decision.phase is Phase.PROGRESSING:
        fields = {"crashes_before": seen(rollout.candidate).crashes}  # what follows is counted against it
    move(
        rollout,
        actor=AUTOPILOT,
        now=now,
        kind=_kind_of(state, decision),
        reason=decision.reason,
        words=decision.words or rollout.words,
        phase=decision.phase,
        step=decision.step,
        traffic=decision.traffic,
        evidence=decision.evidence,
        fields=fields,
    )
    return True


def _kind_of(state: State, decision: Decision) -> str:
    if decision.phase is not None and decision.phase is not state.phase:
        return str(decision.phase)
    if decision.step is not None:
        return "step"
    return "traffic" if decision.traffic is not None else "scale"


def _replaced(rollout: Rollout, now: datetime) -> dict[str, Any]:
    """How the version that was replaced goes on."""
    settings = plan_of(rollout).settings
    if not settings.surge or not settings.keep_old_s:
        want_replicas(rollout.stable, 0, rollout.device)
        return {"old_stage": Rollout.OldStage.UNLOADED}
    return {"old_stage": Rollout.OldStage.WARM, "old_until": now + timedelta(seconds=settings.keep_old_s)}


def _ask_smoke(rollout: Rollout, now: datetime) -> bool:
    if rollout.smoke_asked_at is None or now - rollout.smoke_asked_at > SMOKE_AGAIN:
        Rollout.objects.filter(pk=rollout.pk).update(smoke_asked_at=now)
        send_on_commit(SMOKE, str(rollout.pk))
    return False


def _has_both(endpoint: Endpoint, rollout: Rollout) -> bool:
    there = endpoint.variants.filter(version__in=[rollout.stable_id, rollout.candidate_id])
    return there.count() == len({rollout.stable_id, rollout.candidate_id})


def _keep_reading(rollout: Rollout, record: dict[str, Any], now: datetime) -> None:
    """One reading every few seconds, the oldest gone when there are too many."""
    last = Reading.objects.filter(rollout=rollout).order_by("-at").values_list("at", flat=True).first()
    if last is not None and now - last < READING_EVERY:
        return
    Reading.objects.create(
        rollout=rollout, at=now, weight_bp=rollout.weight_bp, verdict=record["verdict"], findings=record["findings"]
    )
    old = Reading.objects.filter(rollout=rollout).order_by("-at").values_list("pk", flat=True)[READINGS_KEPT:]
    Reading.objects.filter(pk__in=list(old)).delete()


@transaction.atomic
def _put_away(pk: UUID, now: datetime) -> bool:
    """The replaced version's next stage, unless it is in use again."""
    rollout = locked(pk)
    if rollout.old_stage not in {"warm", "parked"} or rollout.old_until is None or rollout.old_until > now:
        return False
    old = rollout.stable
    if _is_used(old):
        Rollout.objects.filter(pk=pk).update(old_stage="", old_until=None)
        return True
    if rollout.old_stage == "warm":
        parked_s = plan_of(rollout).settings.parked_s
        stage, replicas, until = "parked", 1, now + timedelta(seconds=parked_s)
    else:
        stage, replicas, until = "unloaded", 0, None
    want_replicas(old, min(replicas, seen(old).wanted), rollout.device)
    Rollout.objects.filter(pk=pk).update(old_stage=stage, old_until=until)
    return True


def _is_used(version: Version) -> bool:
    """Whether it answers anywhere, or a rollout wants it to."""
    moving = Rollout.objects.filter(Q(stable=version) | Q(candidate=version), phase__in=ACTIVE)
    return Variant.objects.filter(version=version, weight_bp__gt=0).exists() or moving.exists()
