"""placement: by example, and by properties over random fleets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.placement import (
    GIB,
    DeploymentView,
    DeviceView,
    Explain,
    HostView,
    Move,
    ReplicaView,
    Start,
    Stop,
    place,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ALIVE = NOW + timedelta(seconds=5)
DEAD = NOW - timedelta(seconds=1)


def cpu(free_gib: float = 4, total_gib: float = 8) -> DeviceView:
    return DeviceView("cpu", "cpu", int(total_gib * GIB), int(free_gib * GIB))


def cuda(number: int, free_gib: float = 16) -> DeviceView:
    return DeviceView(f"cuda:{number}", "cuda", 16 * GIB, int(free_gib * GIB))


def host(name: str = "a", *devices: DeviceView, lease: datetime | None = ALIVE, **more: bool) -> HostView:
    return HostView(name, lease, devices or (cpu(),), **more)


def explained(decisions: list) -> str:
    return next((d.reason for d in decisions if isinstance(d, Explain)), "")


def test_a_missing_replica_starts_on_the_living_host() -> None:
    assert place([DeploymentView(1, 1)], [], [host("a"), host("b", lease=DEAD)], NOW) == [Start(1, "a", "cpu")]


def test_replicas_spread_over_hosts_then_devices() -> None:
    wish = DeploymentView(1, 4, "cuda", format="torch_export", memory_bytes=GIB)
    hosts = [host("a", cpu(), cuda(0), cuda(1)), host("b", cpu(), cuda(0), cuda(1))]
    starts = Counter((d.host, d.device) for d in place([wish], [], hosts, NOW) if isinstance(d, Start))
    assert starts == {("a", "cuda:0"): 1, ("a", "cuda:1"): 1, ("b", "cuda:0"): 1, ("b", "cuda:1"): 1}


@pytest.mark.parametrize(
    ("wish", "hosts", "reason"),
    [
        (DeploymentView(1, 1), [], "no host is alive"),
        (DeploymentView(1, 1), [host(lease=DEAD)], "no host is alive"),
        (DeploymentView(1, 1), [host(lease=None)], "no host is alive"),
        (DeploymentView(1, 1), [host(draining=True)], "every living host is draining"),
        (DeploymentView(1, 1, "cuda"), [host()], "needs cuda: no host has one"),
        (DeploymentView(1, 1, "cuda:1"), [host("a", cuda(0))], "needs cuda:1: no host has one"),
        (DeploymentView(1, 1, platforms=("tpu", "cuda")), [host()], "needs cuda or tpu: no host has one"),
        (
            DeploymentView(1, 1, "cuda", platforms=("cpu",)),
            [host("a", cuda(0))],
            "wants cuda, but this version runs on cpu only",
        ),
        (DeploymentView(1, 1, tier="code"), [host(allow_code=False)], "code tier: no host allows code"),
        (
            DeploymentView(1, 1, memory_bytes=int(1.2 * GIB)),
            [host("a", cpu(0.8)), host("b", cpu(0.5))],
            "not enough memory: needs 1.2 GiB, best host has 0.8 GiB",
        ),
    ],
)
def test_it_says_in_words_why_nothing_fits(wish: DeploymentView, hosts: list[HostView], reason: str) -> None:
    assert place([wish], [], hosts, NOW) == [Explain(1, reason)]


def test_a_reason_that_stands_already_is_not_written_again() -> None:
    assert place([DeploymentView(1, 1, reason="no host is alive")], [], [], NOW) == []


def test_a_met_wish_loses_its_reason() -> None:
    decisions = place([DeploymentView(1, 1, reason="no host is alive")], [], [host()], NOW)
    assert decisions == [Start(1, "a", "cpu"), Explain(1, "")]


@pytest.mark.parametrize(
    ("format_", "device"),
    [("torch_export", "cuda:0"), ("hf_encoder", "cuda:0"), ("jax_export", "tpu:0"), ("onnx", "cpu"), ("echo", "cpu")],
)
def test_any_prefers_what_the_format_runs_best_on(format_: str, device: str) -> None:
    machine = host("a", cpu(), cuda(0), DeviceView("tpu:0", "tpu"))
    assert place([DeploymentView(1, 1, format=format_)], [], [machine], NOW) == [Start(1, "a", device)]


def test_any_falls_back_to_the_next_kind_when_memory_is_short() -> None:
    wish = DeploymentView(1, 1, format="torch_export", memory_bytes=2 * GIB)
    assert place([wish], [], [host("a", cpu(4), cuda(0, 1))], NOW) == [Start(1, "a", "cpu")]


def test_what_still_loads_is_counted_and_what_is_ready_shows_in_the_free_memory() -> None:
    wishes = [DeploymentView(1, 1, memory_bytes=3 * GIB), DeploymentView(2, 1, memory_bytes=2 * GIB)]
    loading = ReplicaView("r", 1, "a", phase="loading")
    assert explained(place(wishes, [loading], [host("a", cpu(4))], NOW)).startswith("not enough memory")
    ready = replace(loading, phase="ready")
    assert place(wishes, [ready], [host("a", cpu(4))], NOW) == [Start(2, "a", "cpu")]


def test_a_lost_replica_moves_under_its_old_generation_as_token() -> None:
    replica = ReplicaView("r", 1, "dead", generation=7, phase="lost")
    hosts = [host("dead", lease=DEAD), host("a")]
    assert place([DeploymentView(1, 1)], [replica], hosts, NOW) == [Move("r", 7, "a", "cpu")]


def test_a_lost_replica_stays_when_nobody_can_take_it() -> None:
    replica = ReplicaView("r", 1, "dead", phase="lost")
    assert place([DeploymentView(1, 1)], [replica], [host("dead", lease=DEAD)], NOW) == [Explain(1, "no host is alive")]


def test_in_the_grace_period_a_lapsed_lease_moves_nothing() -> None:
    replica = ReplicaView("r", 1, "dead", phase="ready")
    hosts = [host("dead", lease=DEAD), host("a")]
    assert place([DeploymentView(1, 1)], [replica], hosts, NOW, grace=True) == []


def test_surplus_stops_first_what_is_not_ready_and_then_the_youngest() -> None:
    old, young, loading = (ReplicaView(name, 1, "a", phase="ready") for name in ("old", "young", "loading"))
    loading = replace(loading, phase="loading")
    assert place([DeploymentView(1, 2)], [loading, old, young], [host()], NOW) == [Stop("loading")]
    assert place([DeploymentView(1, 1)], [loading, old, young], [host()], NOW) == [Stop("young"), Stop("loading")]


def test_replicas_that_nobody_wishes_for_stop() -> None:
    assert place([], [ReplicaView("r", 9, "a")], [host()], NOW) == [Stop("r")]


def test_draining_waits_for_a_ready_successor() -> None:
    leaving = ReplicaView("old", 1, "a", phase="ready")
    hosts = [host("a", draining=True), host("b")]
    wish = DeploymentView(1, 1)
    assert place([wish], [leaving], hosts, NOW) == [Start(1, "b", "cpu")]
    successor = ReplicaView("new", 1, "b", phase="loading")
    assert place([wish], [leaving, successor], hosts, NOW) == []
    assert place([wish], [leaving, replace(successor, phase="ready")], hosts, NOW) == [Stop("old")]


def test_a_replica_that_was_given_up_is_explained() -> None:
    failed = ReplicaView("r", 1, "a", phase="failed", message="out of memory")
    assert place([DeploymentView(1, 2)], [failed, ReplicaView("s", 1, "a")], [host()], NOW) == [
        Explain(1, "1 of 2 replicas failed: out of memory")
    ]


# Random fleets.
KINDS = ("cpu", "cuda", "tpu")
devices_st = st.builds(
    lambda kind, number, total, free: DeviceView(
        "cpu" if kind == "cpu" else f"{kind}:{number}", kind, total, min(total, free)
    ),
    st.sampled_from(KINDS), st.integers(0, 1), st.sampled_from([0, 4, 8, 16]), st.integers(0, 16),
)  # fmt: skip
hosts_st = st.lists(
    st.builds(
        HostView,
        name=st.sampled_from("abcd"),
        lease_until=st.sampled_from([ALIVE, DEAD, None]),
        devices=st.lists(devices_st, max_size=3, unique_by=lambda d: d.name).map(tuple),
        draining=st.booleans(),
        allow_code=st.booleans(),
    ),
    max_size=4,
    unique_by=lambda h: h.name,
)
wishes_st = st.lists(
    st.builds(
        DeploymentView,
        id=st.integers(1, 4),
        replicas=st.integers(0, 4),
        device=st.sampled_from(["any", "cpu", "cuda", "cuda:1", "tpu"]),
        format=st.sampled_from(["torch_export", "jax_export", "onnx"]),
        tier=st.sampled_from(["data", "code"]),
        platforms=st.sampled_from([(), ("cpu",), ("cuda", "tpu")]),
        memory_bytes=st.integers(0, 6),
    ),
    max_size=4,
    unique_by=lambda d: d.id,
)
replicas_st = st.lists(
    st.builds(
        ReplicaView,
        id=st.integers(0, 99).map(str),
        deployment=st.integers(1, 5),
        host=st.sampled_from(["a", "b", "c", "d", "gone", None]),
        device=st.sampled_from(["cpu", "cuda:0", "tpu:1"]),
        generation=st.integers(1, 3),
        wanted=st.sampled_from(["run", "run", "run", "stop"]),
        phase=st.sampled_from(["pending", "loading", "ready", "lost", "failed", "backoff"]),
    ),
    max_size=8,
    unique_by=lambda r: r.id,
)


def apply(decisions: list, wishes: list, replicas: list) -> tuple[list, list]:
    """What the rows are after the reconciler has written the decisions."""
    rows, wanted = {r.id: r for r in replicas}, {w.id: w for w in wishes}
    for number, decision in enumerate(decisions):
        match decision:
            case Start(deployment, where, device):
                rows[f"new{number}"] = ReplicaView(f"new{number}", deployment, where, device)
            case Move(replica, generation, where, device):
                assert rows[replica].generation == generation
                rows[replica] = replace(
                    rows[replica], host=where, device=device, generation=generation + 1, phase="pending"
                )
            case Stop(replica):
                rows[replica] = replace(rows[replica], wanted="stop")
            case Explain(deployment, reason):
                wanted[deployment] = replace(wanted[deployment], reason=reason)
    return list(wanted.values()), list(rows.values())


@settings(max_examples=300, deadline=None)
@given(wishes_st, replicas_st, hosts_st, st.booleans())
def test_placing_again_after_applying_decides_nothing(wishes, replicas, hosts, grace) -> None:
    decisions = place(wishes, replicas, hosts, NOW, grace=grace)
    wishes, replicas = apply(decisions, wishes, replicas)
    assert place(wishes, replicas, hosts, NOW, grace=grace) == []


@settings(max_examples=300, deadline=None)
@given(wishes_st, replicas_st, hosts_st)
def test_new_places_obey_every_rule(wishes, replicas, hosts) -> None:
    by_name, by_id = {h.name: h for h in hosts}, {w.id: w for w in wishes}
    taken: Counter = Counter()
    owner = {r.id: r.deployment for r in replicas}
    for decision in place(wishes, replicas, hosts, NOW):
        if not isinstance(decision, Start | Move):
            continue
        wish = by_id[decision.deployment if isinstance(decision, Start) else owner[decision.replica]]
        where = by_name[decision.host]
        device = next(d for d in where.devices if d.name == decision.device)
        assert where.alive(NOW)
        assert not where.draining
        assert where.allow_code or wish.tier != "code"
        assert not wish.platforms or device.kind in wish.platforms
        assert wish.device in {"any", device.kind, device.name}
        taken[decision.host, decision.device] += wish.memory_bytes
        if device.memory_total_bytes:
            assert taken[decision.host, decision.device] <= device.memory_free_bytes


@settings(max_examples=300, deadline=None)
@given(wishes_st, replicas_st, hosts_st)
def test_the_count_is_right_or_the_shortfall_is_explained(wishes, replicas, hosts) -> None:
    decisions = place(wishes, replicas, hosts, NOW)
    after_wishes, after = apply(decisions, wishes, replicas)
    serving = {h.name for h in hosts if h.alive(NOW) and not h.draining}
    for wish in after_wishes:
        mine = [r for r in after if r.deployment == wish.id and r.wanted == "run"]
        good = sum(r.host in serving for r in mine)
        assert good <= wish.replicas
        assert good == wish.replicas or wish.reason


@settings(max_examples=300, deadline=None)
@given(wishes_st, replicas_st, hosts_st)
def test_what_stands_well_and_is_wished_for_is_never_touched(wishes, replicas, hosts) -> None:
    decisions = place(wishes, replicas, hosts, NOW)
    serving = {h.name for h in hosts if h.alive(NOW) and not h.draining}
    moved = {d.replica for d in decisions if isinstance(d, Move)}
    stopped = {d.replica for d in decisions if isinstance(d, Stop)}
    assert not moved & {r.id for r in replicas if r.host in serving or r.wanted == "stop"}
    for wish in wishes:
        good = [r for r in replicas if r.deployment == wish.id and r.wanted == "run" and r.host in serving]
        assert len([r for r in good if r.id in stopped]) == max(0, len(good) - wish.replicas)
