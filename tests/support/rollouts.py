"""A fleet by rows and a judge by word, for rollouts in the database: replicas are ready when a test says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from accounts.models import Team
from accounts.permissions import Actor
from endpoints import actions as endpoints
from endpoints.models import Endpoint
from fleet.models import Deployment, Device, Host, Replica
from registry.models import Version
from rollouts.controller import Controller
from rollouts.facts import Verdict
from rollouts.models import Rollout
from rollouts.plans import Plan
from tests.support.fleet_cast import GIB, version


@dataclass
class Word:
    """A judge that says what it is told to."""

    said: Verdict = field(default_factory=Verdict)
    record: dict[str, Any] | None = None

    def __call__(self, rollout: Rollout, plan: Plan, crashes: int, now: datetime) -> Word:
        return self

    def verdict(self, since: datetime, of: str) -> Verdict:
        return self.said


@dataclass
class Clock:
    """Starts at the real time, since a person's actions are written by the database's."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


PASS = Verdict("pass", "no worse", requests=100_000)


def stage(
    dev: Actor, *, replicas: int = 1, name: str = "digits", of: Team | None = None
) -> tuple[Endpoint, Version, Version]:
    """An endpoint whose version 1 has all traffic and `replicas` ready replicas, and a ready version 2."""
    host, _ = Host.objects.get_or_create(name="a", defaults={"lease_until": datetime.now(UTC) + timedelta(hours=1)})
    memory = {"kind": "cpu", "memory_total_bytes": 64 * GIB, "memory_free_bytes": 64 * GIB}
    Device.objects.get_or_create(host=host, name="cpu", defaults=memory)
    stable, candidate = version(name, of=of), version(name, of=of)
    endpoint = endpoints.deploy(version=stable, actor=dev, replicas=replicas)
    load()
    return endpoint, stable, candidate


def load(*, not_of: Version | None = None) -> None:
    """Every wished replica is ready, every other one stopped, as a fleet with room would have it a moment later."""
    for wish in Deployment.objects.select_related("version"):
        rows = list(Replica.objects.filter(deployment=wish, wanted="run"))
        for row in rows[wish.replicas :]:
            row.delete()
        if wish.version == not_of:
            continue
        Replica.objects.filter(deployment=wish).update(phase="ready")
        for _ in range(wish.replicas - len(rows)):
            Replica.objects.create(deployment=wish, wanted="run", phase="ready")


def smoked(rollout: Rollout, *, passed: bool = True, words: str = "3 of 3 golden inputs answered as saved") -> None:
    Rollout.objects.filter(pk=rollout.pk).update(smoke={"passed": passed, "words": words})


def drive(rollout: Rollout, controller: Controller, clock: Clock, *, ticks: int = 60, dt: float = 15.0) -> Rollout:
    """Ticks in a fleet with room until the rollout has ended."""
    for _ in range(ticks):
        controller.tick()
        rollout.refresh_from_db()
        if not rollout.is_active:
            break
        if rollout.phase == "smoke":
            smoked(rollout)
        clock.pass_s(dt)
        load()
    return rollout
