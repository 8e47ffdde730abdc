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


def tpu(number: int) -> DeviceView:
    return DeviceView(f"tpu:{number}", "tpu")


def test_a_replica_on_an_accelerator_gets_its_share_and_the_context_is_counted_beside_it() -> None:
    wish = DeploymentView(1, 1, "cuda", memory_bytes=GIB // 4, device_bytes=4 * GIB)
    assert place([wish], [], [host("a", cuda(0))], NOW) == [Start(1, "a", "cuda:0", 0.25)]
    just_too_small = host("a", cuda(0, 4.4))
    assert explained(place([wish], [], [just_too_small], NOW)) == (
        "not enough memory: needs 4.5 GiB, best cuda has 4.4 GiB"
    )


def test_on_the_cpu_a_replica_needs_what_was_measured_and_has_no_share() -> None:
    wish = DeploymentView(1, 1, "cpu", memory_bytes=GIB, device_bytes=64 * GIB)
    assert place([wish], [], [host("a", cpu(2))], NOW) == [Start(1, "a", "cpu", 0.0)]


def test_several_replicas_stand_on_one_device_while_their_shares_fit() -> None:
    wish = DeploymentView(1, 9, "cuda", device_bytes=int(4.5 * GIB))
    decisions = place([wish], [], [host("a", cuda(0), cuda(1))], NOW)
    starts = Counter(d.device for d in decisions if isinstance(d, Start))
    assert starts == {"cuda:0": 3, "cuda:1": 3}
    assert explained(decisions) == "not enough memory: needs 5.0 GiB, best cuda has 1.0 GiB"


def test_what_was_promised_to_ready_replicas_is_not_promised_again_though_it_is_not_used_yet() -> None:
    wishes = [DeploymentView(1, 1, "cuda", device_bytes=12 * GIB), DeploymentView(2, 1, "cuda", device_bytes=6 * GIB)]
    ready = ReplicaView("r", 1, "a", "cuda:0", phase="ready")
    reason = explained(place(wishes, [ready], [host("a", cuda(0, 15))], NOW))
    assert reason == "not enough memory: needs 6.5 GiB, best cuda has 3.5 GiB"


def test_what_others_hold_of_a_device_is_not_given_away() -> None:
    wish = DeploymentView(1, 1, "cuda", device_bytes=4 * GIB)
    assert place([wish], [], [host("a", cuda(0, 2), cuda(1, 8))], NOW) == [Start(1, "a", "cuda:1", 0.25)]


def test_a_tpu_chip_takes_one_replica() -> None:
    decisions = place([DeploymentView(1, 3, "tpu")], [], [host("a", tpu(0), tpu(1))], NOW)
    assert decisions[:2] == [Start(1, "a", "tpu:0"), Start(1, "a", "tpu:1")]
    assert explained(decisions) == "every tpu that it could run on is taken: a chip serves one replica"


def test_a_chip_is_free_again_only_when_its_last_replica_is_gone() -> None:
    leaving = ReplicaView("old", 1, "a", "tpu:0", wanted="stop", phase="draining")
    wish = DeploymentView(2, 1, "tpu")
    assert "is taken" in explained(place([wish], [leaving], [host("a", tpu(0))], NOW))
    assert place([wish], [], [host("a", tpu(0))], NOW) == [Start(2, "a", "tpu:0")]


# Random fleets.
KINDS = ("cpu", "cuda", "tpu")
HALF = GIB // 2
devices_st = st.builds(
    lambda kind, number, total, free: DeviceView(
        "cpu" if kind == "cpu" else f"{kind}:{number}", kind, total, min(total, free)
    ),
    st.sampled_from(KINDS), st.integers(0, 1), st.sampled_from([0, 4 * HALF, 8 * HALF, 16 * HALF]), st.integers(0, 16).map(HALF.__mul__),
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
        memory_bytes=st.integers(0, 6).map(HALF.__mul__),
        device_bytes=st.sampled_from([0, 0, 2 * HALF, 5 * HALF]),
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


@settings(max_examples=100, deadline=None)
@given(wishes_st, replicas_st, hosts_st, st.booleans())
def test_placing_again_after_applying_decides_nothing(wishes, replicas, hosts, grace) -> None:
    decisions = place(wishes, replicas, hosts, NOW, grace=grace)
    wishes, replicas = apply(decisions, wishes, replicas)
    assert place(wishes, replicas, hosts, NOW, grace=grace) == []


@settings(max_examples=100, deadline=None)
@given(wishes_st, replicas_st, hosts_st)
def test_new_places_obey_every_rule(wishes, replicas, hosts) -> None:
    by_name, by_id = {h.name: h for h in hosts}, {w.id: w for w in wishes}
    taken: Counter = Counter()
    chips: Counter = Counter((r.host, r.device) for r in replicas if r.device.startswith("tpu"))
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
        taken[decision.host, decision.device] += wish.need(device.kind)
        chips[decision.host, decision.device] += device.kind == "tpu"
        assert 0 <= decision.share <= 1
        if device.memory_total_bytes:
            assert taken[decision.host, decision.device] <= device.memory_free_bytes
        assert chips[decision.host, decision.device] <= 1


@settings(max_examples=100, deadline=None)
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


@settings(max_examples=100, deadline=None)
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
