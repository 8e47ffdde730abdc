"""Wanted against seen on a real database: leases, generations, lost and doubled messages, a frozen agent."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, connections
from django.db.models.functions import Now

from accounts.models import AuditEntry, Role
from endpoints import actions as endpoints
from fleet import actions, reconciling
from fleet.models import Deployment, Host, Reconciliation, Replica
from inference.errors import Conflict, Forbidden, InvalidInput
from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import ReplicaSeen, Seen
from tests.support.fleet_cast import Rules, devices, lapse, person, team, version
from worker.agent import BUSY_S, IDLE_S, converge_once
from worker.specs import replica_specs

pytestmark = pytest.mark.django_db
committed = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple, str]]:
    """Wake-ups that went out. None arrives: every test passes with the broker dead."""
    from accounts import wakeups

    messages: list[tuple[str, tuple, str]] = []
    monkeypatch.setattr(wakeups, "send", lambda task, *args, queue="control": messages.append((task, args, queue)))
    return messages


@pytest.fixture
def long_up() -> None:
    """The reconciler has seen this database all along, so no grace period is running."""
    hour_ago = Now() - timedelta(hours=1)
    Reconciliation.objects.update_or_create(id=1, defaults={"at": Now(), "grace_until": hour_ago})


@pytest.fixture(autouse=True)
def old_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The PostgreSQL of a test run may be seconds old; its start gives no grace unless a test asks for it."""
    monkeypatch.setattr(reconciling, "AFTER_START_S", -(10**9))


def beat(name: str, **more: object) -> None:
    actions.heartbeat_host(name, Seen("boot", 1, [], [], devices(), standby_ready=True), **more)


def settle(*supervisors: Rules, passes: int = 6) -> None:
    for _ in range(passes):
        actions.reconcile()
        for supervisor in supervisors:
            converge_once(supervisor.name, supervisor)


def test_a_wish_becomes_a_ready_replica_without_any_message(long_up: None) -> None:
    a = Rules("a")
    converge_once("a", a)
    actions.want(version=version(), replicas=2)
    settle(a)
    rows = list(Replica.objects.all())
    assert [row.phase for row in rows] == ["ready", "ready"]
    assert all(row.route_address == f"unix:/run/a/{row.id}" and row.route_generation == 1 for row in rows)
    assert all(row.ready_at and row.lease_until for row in rows)
    assert actions.reconcile() == 0


def test_a_share_of_an_accelerator_reaches_the_spec_and_what_is_held_of_it_comes_back(long_up: None) -> None:
    actions.heartbeat_host("a", Seen("boot", 1, [], [], devices(16, cudas=2), standby_ready=True))
    actions.want(version=version(peak_bytes=2 << 30), replicas=2, device="cuda")
    actions.reconcile()
    specs = replica_specs("a")
    assert sorted(spec.device for spec in specs) == ["cuda:0", "cuda:1"]
    assert {(spec.device_memory_share, spec.device_memory_bytes) for spec in specs} == {(0.25, 4 << 30)}
    assert all(spec.memory_bytes == 8 << 30 for spec in specs), "twice the peak of host memory, and the runtime's own"
    one = specs[0]
    report = ReplicaSeen(one.id, 1, ReplicaPhase.READY, device_memory_bytes=3 << 30, compiles_after_ready=2)
    actions.record_seen("a", Seen("boot", 1, [report], [], devices(16, cudas=2)))
    row = Replica.objects.get(id=one.id)
    assert (row.device_memory_bytes, row.compiles_after_ready, row.device_memory_share) == (3 << 30, 2, 0.25)


def test_a_moved_replica_gets_the_share_that_fits_its_new_device(long_up: None) -> None:
    for name, gib in (("a", 16), ("b", 8)):
        actions.heartbeat_host(name, Seen("boot", 1, [], [], devices(gib, cudas=1), standby_ready=True))
    actions.want(version=version(peak_bytes=1 << 30), replicas=1, device="cuda")
    actions.reconcile()
    row = Replica.objects.get()
    assert (row.host_id, row.device_memory_share) == ("a", 0.125)
    lapse("a")
    actions.reconcile()
    row.refresh_from_db()
    assert (row.host_id, row.generation, row.device_memory_share) == ("b", 2, 0.25)


def test_a_smaller_wish_stops_replicas_and_forgets_them(long_up: None) -> None:
    a = Rules("a")
    converge_once("a", a)
    row = version()
    actions.want(version=row, replicas=2)
    settle(a)
    actions.want(version=row, replicas=1)
    settle(a, passes=2)
    assert Replica.objects.count() == 1
    assert len(a.held) == 1
    actions.want(version=row, replicas=0)
    settle(a, passes=3)
    assert not Replica.objects.exists()
    assert not Deployment.objects.exists()
    assert a.held == {}


def test_a_version_behind_an_endpoint_is_scaled_to_nothing_and_back(long_up: None) -> None:
    a = Rules("a")
    converge_once("a", a)
    row = version()
    endpoints.deploy(version=row, actor=person("dev", Role.DEVELOPER), device="cpu")
    settle(a)
    for replicas in (0, 2):
        actions.scale(deployment=Deployment.objects.get(), replicas=replicas, actor=person(f"p{replicas}"))
        settle(a)
        assert len(a.held) == replicas
    assert Deployment.objects.get().device == "cpu"


@committed
def test_a_wake_up_goes_to_the_queue_of_the_host_that_it_concerns(long_up: None, sent: list) -> None:
    beat("a")
    actions.want(version=version(), replicas=1)
    actions.reconcile()
    assert ("fleet.tasks.reconcile", (), "control") in sent
    assert ("worker.converge", ("a",), "host.a") in sent


def test_a_lost_host_hands_its_replicas_over_under_a_new_generation(long_up: None) -> None:
    a, b = Rules("a"), Rules("b")
    converge_once("a", a)
    actions.want(version=version(), replicas=1)
    settle(a)
    lapse("a")
    actions.reconcile()
    lost = Replica.objects.get()
    assert (lost.phase, lost.generation, lost.host_id) == ("lost", 1, "a")
    assert lost.deployment.reason == "no host is alive"
    converge_once("b", b)
    actions.reconcile()
    moving = Replica.objects.get()
    assert (moving.phase, moving.generation, moving.host_id) == ("pending", 2, "b")
    assert (moving.route_address, moving.route_generation) == (f"unix:/run/a/{lost.id}", 1)
    settle(b)
    moved = Replica.objects.get()
    assert (moved.phase, moved.route_address, moved.route_generation) == ("ready", f"unix:/run/b/{lost.id}", 2)
    assert moved.deployment.reason == ""


def test_a_host_that_comes_back_keeps_what_nobody_could_take(long_up: None) -> None:
    a = Rules("a")
    converge_once("a", a)
    actions.want(version=version(), replicas=1)
    settle(a)
    lapse("a")
    actions.reconcile()
    settle(a, passes=1)
    actions.reconcile()
    row = Replica.objects.get()
    assert (row.phase, row.generation, row.restarts) == ("ready", 1, 0)


def test_a_frozen_agent_writes_nothing_over_a_newer_generation(long_up: None) -> None:
    a, b = Rules("a"), Rules("b")
    converge_once("a", a)
    actions.want(version=version(), replicas=1)
    settle(a)
    before_the_freeze = a.look()
    converge_once("b", b)
    lapse("a")
    settle(b)
    # The agent of `a` goes on where it stood: with an old answer of its supervisor in its hand.
    assert actions.record_seen("a", before_the_freeze) == 0
    row = Replica.objects.get()
    assert (row.host_id, row.generation, row.route_address) == ("b", 2, f"unix:/run/b/{row.id}")
    # Its next pass reads the rows anew, and the old process goes.
    converge_once("a", a)
    assert a.held == {}
    assert actions.reconcile() == 0


def test_an_agent_that_slept_during_its_pass_sends_and_writes_nothing(long_up: None) -> None:
    a = Rules("a")
    beat("a")
    actions.want(version=version(), replicas=1)
    actions.reconcile()
    times = iter([0.0, 60.0])
    assert converge_once("a", a, clock=lambda: next(times)) == 0.0
    assert a.told == []
    times = iter([0.0, 0.1, 60.0])
    assert converge_once("a", a, clock=lambda: next(times)) == 0.0
    assert Replica.objects.get().phase == "pending"


def test_a_seen_of_an_older_generation_is_ignored_on_the_same_host(long_up: None) -> None:
    a = Rules("a")
    converge_once("a", a)
    actions.want(version=version(), replicas=1)
    settle(a)
    old = a.look()
    Replica.objects.update(generation=2, phase="pending")
    actions.record_seen("a", old)
    assert Replica.objects.get().phase == "pending"


def test_fifty_doubled_messages_make_exactly_the_wanted_replicas(long_up: None) -> None:
    a = Rules("a")
    converge_once("a", a)
    actions.want(version=version(), replicas=3)
    actions.reconcile()
    for _ in range(50):
        converge_once("a", a)
        actions.reconcile()
    assert len(a.held) == Replica.objects.count() == 3
    assert {row.generation for row in Replica.objects.all()} == {1}


def test_a_reconciler_that_comes_back_gives_leases_a_grace_period() -> None:
    a = Rules("a")
    converge_once("a", a)
    beat("b")
    actions.want(version=version(), replicas=1)
    Reconciliation.objects.update_or_create(
        id=1, defaults={"at": Now() - timedelta(minutes=5), "grace_until": Now() - timedelta(minutes=5)}
    )
    settle(a)
    host = Replica.objects.get().host_id
    lapse(host)
    actions.reconcile()
    row = Replica.objects.get()
    assert (row.generation, row.phase == "lost") == (1, False)
    Reconciliation.objects.update(grace_until=Now() - timedelta(seconds=1))
    actions.reconcile()
    assert Replica.objects.get().generation == 2


def test_a_database_that_just_started_gives_leases_a_grace_period(
    long_up: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat("a")
    beat("b")
    actions.want(version=version(), replicas=1)
    actions.reconcile()
    host = Replica.objects.get().host_id
    monkeypatch.setattr(reconciling, "AFTER_START_S", 10**9)
    lapse(host)
    actions.reconcile()
    assert Replica.objects.get().generation == 1


@committed
def test_only_one_reconciler_runs_at_a_time(long_up: None) -> None:
    beat("a")
    actions.want(version=version(), replicas=1)
    other = connections.create_connection("default")
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [reconciling.LOCK])
        assert actions.reconcile() == 0
        assert not Replica.objects.exists()
    finally:
        other.close()
        connection.close()
    # The pool's session still holds the lock until it ends: end it.
    from django.db import connections as all_connections

    all_connections["default"].close_pool()
    assert actions.reconcile() == 1


@committed
def test_a_crashed_replica_keeps_its_route_while_it_restarts(long_up: None, sent: list) -> None:
    a = Rules("a")
    converge_once("a", a)
    actions.want(version=version(), replicas=1)
    settle(a)
    sent.clear()
    row = Replica.objects.get()
    a.crash(str(row.id))
    assert converge_once("a", a) == BUSY_S
    row.refresh_from_db()
    assert (row.phase, row.restarts) == ("starting", 1)
    assert row.route_address == f"unix:/run/a/{row.id}"
    assert ("endpoints.tasks.publish", (), "control") in sent
    settle(a)
    assert Replica.objects.get().phase == "ready"


@committed
def test_a_settled_host_is_left_in_peace(long_up: None, sent: list, django_assert_max_num_queries) -> None:
    a = Rules("a")
    converge_once("a", a)
    actions.want(version=version(), replicas=2)
    settle(a)
    sent.clear()
    with django_assert_max_num_queries(20):
        assert converge_once("a", a) == IDLE_S
    assert sent == []


def test_an_unreachable_supervisor_is_named_and_its_lease_lapses(long_up: None) -> None:
    from worker.agent import Agent

    a = Rules("a")
    agent = Agent("a", a)
    agent.pass_once()
    lease = Host.objects.get().lease_until
    a.down = True
    agent.pass_once()
    host = Host.objects.get()
    assert "does not answer" in host.problem
    assert host.lease_until == lease
    a.down = False
    agent.pass_once()
    assert Host.objects.get().problem == ""


def test_draining_moves_replicas_without_a_gap(long_up: None) -> None:
    a, b = Rules("a"), Rules("b")
    converge_once("a", a)
    actions.want(version=version(), replicas=1)
    settle(a)
    converge_once("b", b)
    admin = person("root", superuser=True)
    actions.set_draining(host=Host.objects.get(name="a"), draining=True, actor=admin)
    for _ in range(8):
        actions.reconcile()
        converge_once("a", a)
        converge_once("b", b)
        assert Replica.objects.filter(phase="ready", wanted="run").exists()
    assert [row.host_id for row in Replica.objects.all()] == ["b"]
    assert AuditEntry.objects.get().verb == "drain"


def test_draining_needs_a_superuser() -> None:
    beat("a")
    with pytest.raises(Forbidden):
        actions.set_draining(host=Host.objects.get(), draining=True, actor=person("ann", Role.ADMIN))


def test_a_restart_is_a_new_generation_and_the_old_one_is_known_until_it_is_ready(long_up: None) -> None:
    a = Rules("a")
    converge_once("a", a)
    actions.want(version=version(), replicas=1)
    settle(a)
    row = Replica.objects.get()
    actions.restart_replica(replica=row, actor=person("op", Role.OPERATOR))
    assert (row.generation, row.route_generation, row.phase) == (2, 1, "pending")
    old = ReplicaSeen(str(row.id), 1, ReplicaPhase.READY, row.route_address)
    for phase, known in ((ReplicaPhase.LOADING, 1), (ReplicaPhase.READY, 2)):
        new = ReplicaSeen(str(row.id), 2, phase, "unix:/run/a/new")
        actions.record_seen("a", Seen("boot", 1, [new, old]))
        row.refresh_from_db()
        assert (row.phase, row.route_generation) == (phase.value, known)
    stale = Replica.objects.get()
    stale.generation = 1
    with pytest.raises(Conflict):
        actions.restart_replica(replica=stale, actor=person("op2", Role.OPERATOR))


def test_a_developer_may_scale_and_not_restart(long_up: None) -> None:
    beat("a")
    wish = actions.want(version=version(), replicas=1)
    developer = person("dev", Role.DEVELOPER)
    assert actions.scale(deployment=wish, replicas=3, actor=developer).replicas == 3
    actions.reconcile()
    with pytest.raises(Forbidden):
        actions.restart_replica(replica=Replica.objects.first(), actor=developer)
    with pytest.raises(Forbidden):
        actions.scale(deployment=wish, replicas=1, actor=person("eve", Role.ADMIN, team("crows")))


@pytest.mark.parametrize("device", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0:1", "any:1", "cuda:" + "9" * 20])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    with pytest.raises(InvalidInput):
        actions.want(version=version(), replicas=1, device=device)


def test_only_a_ready_version_can_be_wanted() -> None:
    with pytest.raises(Conflict):
        actions.want(version=version(status="validating"), replicas=1)
    with pytest.raises(InvalidInput):
        actions.want(version=version(), replicas=65)
