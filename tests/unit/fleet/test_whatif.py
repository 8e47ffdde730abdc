"""Placement asked about wishes that nobody has written."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from fleet.placement import CONTEXT_BYTES, GIB, DeploymentView, DeviceView, HostView, ReplicaView
from fleet.whatif import Fleet, ask, exchanges, without_one

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ALIVE = NOW + timedelta(seconds=5)
STABLE = DeploymentView(1, 2, "cuda", format="torch_export", device_bytes=6 * GIB - CONTEXT_BYTES)
CANDIDATE = DeploymentView(-2, 1, "cuda", format="torch_export", device_bytes=6 * GIB - CONTEXT_BYTES)


def fleet(total_gib: int, free_gib: float, *, cards: int = 2, ready: int = 2) -> Fleet:
    """One host; the stable version has a ready replica of 6 GiB on each of the first `ready` cards."""
    devices = tuple(
        DeviceView(f"cuda:{n}", "cuda", total_gib * GIB, int(free_gib * GIB) if n < ready else total_gib * GIB)
        for n in range(cards)
    )
    replicas = tuple(ReplicaView(f"s{n}", 1, "a", f"cuda:{n}", phase="ready") for n in range(ready))
    return Fleet((STABLE,), replicas, (HostView("a", ALIVE, devices),), NOW)


def test_what_fits_beside_is_placed_and_counted() -> None:
    found = ask(fleet(16, 10), replace(CANDIDATE, replicas=2))
    assert (found.fits, found.placed, found.short) == (True, 2, "")
    assert [one.device for one in found.after.replicas if one.deployment == -2] == ["cuda:0", "cuda:1"]


def test_the_device_that_misses_the_least_is_named() -> None:
    found = ask(fleet(16, 10), replace(CANDIDATE, replicas=3))
    assert (found.fits, found.placed) == (False, 2)
    assert found.short == "cuda:0 of host a is 2.0 GiB short (6.0 needed, 4.0 left)"


def test_what_stands_already_is_not_placed_again() -> None:
    held = fleet(16, 10)
    mine = ReplicaView("c0", -2, "a", "cuda:0", phase="pending")
    found = ask(replace(held, deployments=(STABLE, CANDIDATE), replicas=(*held.replicas, mine)), CANDIDATE)
    assert (found.fits, len(found.after.replicas)) == (True, 3)


def test_no_host_and_no_such_device_are_said() -> None:
    assert ask(replace(fleet(16, 10), hosts=()), CANDIDATE).short == "no host is alive"
    cpu_only = replace(fleet(16, 10), hosts=(HostView("a", ALIVE, (DeviceView("cpu", "cpu", GIB, GIB),)),))
    assert ask(cpu_only, CANDIDATE).short == "needs cuda: no host has one"


def test_a_chip_that_is_taken_is_no_matter_of_memory() -> None:
    chip = DeviceView("tpu:0", "tpu", 32 * GIB, 32 * GIB)
    wish = DeploymentView(-2, 1, "tpu", format="jax_export", device_bytes=GIB)
    held = Fleet((wish,), (ReplicaView("x", 9, "a", "tpu:0", phase="ready"),), (HostView("a", ALIVE, (chip,)),), NOW)
    assert ask(held, wish).short == "tpu:0 of host a is taken: such a chip serves one replica"


def test_where_both_do_not_fit_replicas_are_exchanged_one_by_one() -> None:
    tight = fleet(8, 2)
    assert not ask(tight, CANDIDATE).fits
    found = exchanges(tight, STABLE, replace(CANDIDATE, replicas=0))
    assert (found.fits, found.placed, found.wanted) == (True, 2, 2)
    assert [one.deployment for one in found.after.replicas] == [-2, -2]


def test_a_larger_candidate_does_not_fit_into_what_one_replica_leaves() -> None:
    larger = replace(CANDIDATE, replicas=0, device_bytes=9 * GIB - CONTEXT_BYTES)
    found = exchanges(fleet(8, 2), STABLE, larger)
    assert (found.fits, found.placed) == (False, 0)
    assert found.short == "cuda:1 of host a is 1.0 GiB short (9.0 needed, 8.0 left)"


def test_a_stopped_replica_gives_its_memory_back() -> None:
    left = without_one(fleet(8, 2), STABLE)
    assert [one.id for one in left.replicas] == ["s0"]
    assert [device.memory_free_bytes // GIB for device in left.hosts[0].devices] == [2, 8]
    assert without_one(left, replace(STABLE, replicas=0)).replicas == ()


@given(st.integers(1, 5), st.integers(6, 40), st.integers(1, 3))
def test_more_is_never_placed_than_fits_and_exchange_is_never_harder(count: int, total: int, cards: int) -> None:
    held = fleet(total, max(0, total - 6), cards=cards, ready=min(2, cards))
    beside = ask(held, replace(CANDIDATE, replicas=count))
    on_cards = [one.device for one in beside.after.replicas]
    assert all(on_cards.count(f"cuda:{n}") * 6 <= total for n in range(cards))
    assert beside.fits == (not beside.short)
    stable = replace(STABLE, replicas=min(2, cards))
    if ask(held, replace(CANDIDATE, replicas=stable.replicas)).fits:
        assert exchanges(held, stable, replace(CANDIDATE, replicas=0)).fits
