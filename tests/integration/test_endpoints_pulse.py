"""A control worker whose broker is dead: wishes are placed and the table is counted on all the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from accounts.models import Role
from endpoints import actions
from endpoints.models import PublishedTable
from fleet import actions as fleet
from fleet.models import Replica
from inference.protocol.supervision import Seen
from tests.support.celery_workers import celery_worker
from tests.support.database import Services
from tests.support.fleet_cast import devices, person, version

pytestmark = pytest.mark.django_db(transaction=True)


def until(what: str, true: Callable[[], object], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)


def test_a_control_worker_without_a_broker_still_reconciles_and_counts_the_table(
    tmp_path: Path, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accounts import wakeups

    monkeypatch.setattr(wakeups, "send", lambda *args, **kwargs: None)
    with celery_worker("control", tmp_path, services):
        until("its first table", PublishedTable.objects.exists, 40)
        before = PublishedTable.objects.get().generation
        fleet.heartbeat_host("a", Seen("boot", 1, [], [], devices()))
        actions.deploy(version=version(), actor=person("dev", Role.DEVELOPER))
        until("a placed replica", Replica.objects.filter(host_id="a").exists, 8)
        until("a newer table", lambda: PublishedTable.objects.get().generation > before, 8)
