"""Rollouts to look at: real ones, started and moved by the real actions and controller, judged by the real judge from
stored samples that stand where a gateway's would.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from accounts.permissions import Actor
from endpoints.models import Endpoint
from inference.protocol.samples import bucket_of
from registry.models import Version
from rollouts import actions
from rollouts.controller import Controller
from rollouts.judging import judge_rollout
from rollouts.models import Reading, Rollout, RolloutEvent
from rollouts.plans import Plan
from rollouts.writing import plan_of
from telemetry.models import StoredSample
from tests.support.rollouts import Clock, Word, load, smoked


def begin(endpoint: Endpoint, candidate: Version, plan: Plan, actor: Actor, *, reason: str = "") -> Rollout:
    return actions.start(endpoint=endpoint, version=candidate, plan=plan, actor=actor, reason=reason)


def tick_until(rollout: Rollout, controller: Controller, phase: str, *, step: int = 0, ticks: int = 20) -> Rollout:
    """Ticks in a fleet with room until the rollout is in this phase at this step or later."""
    for _ in range(ticks):
        controller.tick()
        rollout.refresh_from_db()
        if rollout.phase == phase and rollout.step >= step:
            return rollout
        if rollout.phase == "smoke":
            smoked(rollout)
        load()
    raise AssertionError(f"it is {rollout.phase} at step {rollout.step}, not {phase} at {step}: {rollout.words}")


def controller(word: Word | None = None) -> tuple[Controller, Word, Clock]:
    word, clock = word or Word(), Clock()
    return Controller(word, clock=clock), word, clock


def traffic(
    rollout: Rollout,
    *,
    seconds: int = 240,
    per_s: int = 60,
    errors: float = 0.0,
    slower: float = 1.0,
    arm: str = "canary",
) -> None:
    """Samples of both versions over the last `seconds`, by the share that the rollout has; errors, slower: the
    candidate's. What the rollout has done is put before them.
    """
    chance, now = random.Random(11), datetime.now(UTC).replace(microsecond=0)
    share = rollout.weight_bp / 10_000 or 1.0
    rows = []
    for back in range(seconds, 0, -1):
        at = now - timedelta(seconds=back)
        sides = [(rollout.stable.number, "primary", round(per_s * (1 - share)) or per_s, 0.001, 1.0)]
        sides.append((rollout.candidate.number, arm, max(1, round(per_s * share)), errors, slower))
        for number, side, requests, wrong, factor in sides:
            counts: dict[str, int] = {}
            for _ in range(requests):
                bucket = str(bucket_of(8.0 * factor * chance.lognormvariate(0, 0.35)))
                counts[bucket] = counts.get(bucket, 0) + 1
            failed = sum(chance.random() < wrong for _ in range(requests))
            rows.append(
                StoredSample(
                    source=f"show-{number}", sequence=back, at=at, endpoint=rollout.endpoint_name, version=number, arm=side,
                    requests=requests, errors=failed, error_counts={"internal": failed} if failed else {}, drawn=requests,
                    latency_counts=counts, queue_counts=counts, latency_sum_ms=8.0 * factor * requests,
                )
            )  # fmt: skip
    StoredSample.objects.bulk_create(rows)
    _backdate(rollout, seconds + 1, now)


def _backdate(rollout: Rollout, seconds: float, now: datetime) -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        # Events are append-only by a trigger; here their time alone is moved.
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE rollouts_rolloutevent DISABLE TRIGGER USER")
        for place, event in enumerate(RolloutEvent.objects.filter(rollout=rollout).order_by("seq")):
            at = now - timedelta(seconds=seconds + 30 - 6 * place)
            RolloutEvent.objects.filter(pk=event.pk).update(at=min(at, now - timedelta(seconds=seconds)))
        cursor.execute("ALTER TABLE rollouts_rolloutevent ENABLE TRIGGER USER")
    then = now - timedelta(seconds=seconds)
    changes = {"judged_from": then, "step_at": then, "phase_at": then, "created_at": then - timedelta(seconds=40)}
    Rollout.objects.filter(pk=rollout.pk).update(**changes)
    rollout.refresh_from_db()


def judged(rollout: Rollout, *, looks: int = 16) -> Rollout:
    """The real judge's readings over the samples' time, and its newest judgement."""
    plan, now = plan_of(rollout), datetime.now(UTC)
    assert rollout.judged_from is not None
    begun, took = rollout.judged_from, now - rollout.judged_from
    for place in range(1, looks + 1):
        at = begun + took * place / looks
        record = judge_rollout(rollout, plan, 0, at).record
        assert record is not None
        Reading.objects.create(
            rollout=rollout, at=at, weight_bp=rollout.weight_bp, verdict=record["verdict"], findings=record["findings"]
        )
    Rollout.objects.filter(pk=rollout.pk).update(judgement=record, judged_at=now)
    rollout.refresh_from_db()
    return rollout
