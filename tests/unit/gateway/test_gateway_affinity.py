"""Which replica a sequence's requests go to: properties over arbitrary comings and goings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import NotReady, SequenceLost
from inference.gateway.affinity import Affinity, SequenceKey, rendezvous

REPLICAS = ["r1", "r2", "r3", "r4"]


def key(name=1, version=1):
    return SequenceKey("e", version, name)


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(1, 4), st.booleans()),
        st.tuples(st.just("ready"), st.sets(st.sampled_from(REPLICAS))),
        st.tuples(st.just("lost"), st.sampled_from(REPLICAS)),
        st.tuples(st.just("ended"), st.integers(1, 4)),
    ),
    max_size=60,
)


@given(ACTS)
def test_a_sequence_never_changes_its_replica_without_a_start(acts):
    affinity, ready, homes, now = Affinity(), set(REPLICAS), {}, 0.0
    for act, *words in acts:
        now += 1
        if act == "ready":
            ready = words[0]
        elif act == "lost":
            affinity.lost(words[0])
            homes = {name: None if home == words[0] else home for name, home in homes.items()}
        elif act == "ended":
            affinity.ended(key(words[0]))
            homes.pop(words[0], None)
        else:
            name, is_start = words
            try:
                found = affinity.pick(key(name), ready, is_start=is_start, now=now)
            except SequenceLost:
                assert not is_start
                assert homes[name] not in ready
                homes[name] = None
            except NotReady:
                assert not ready
                assert is_start or name not in homes
            else:
                assert found in ready
                assert is_start or homes.get(name, found) == found
                homes[name] = found


@given(st.sets(st.sampled_from(REPLICAS), min_size=1), st.lists(st.one_of(st.integers(1, 999), st.text(min_size=1))))
def test_gateways_agree_without_a_word(ready, names):
    one, other = Affinity(), Affinity()
    for name in names:
        started = one.pick(key(name), ready, is_start=True, now=0)
        assert other.pick(key(name), sorted(ready), is_start=False, now=5) == started


@given(st.sets(st.text(min_size=1, max_size=4), min_size=2, max_size=8), st.integers(1, 10_000))
def test_a_replica_that_goes_moves_only_its_own_sequences(replicas, name):
    home = rendezvous(key(name), replicas)
    gone = min(replicas - {home})
    assert rendezvous(key(name), replicas - {gone}) == home


def test_sequences_spread_evenly():
    homes = [rendezvous(key(name), REPLICAS) for name in range(1, 4001)]
    assert all(900 < homes.count(replica) < 1100 for replica in REPLICAS)


def test_a_number_and_a_name_are_two_sequences():
    homes = {(rendezvous(key(n), REPLICAS), rendezvous(key(str(n)), REPLICAS)) for n in range(1, 100)}
    assert any(one != other for one, other in homes)


def test_a_lost_replica_ends_its_sequences_until_they_start_anew():
    affinity = Affinity()
    home = affinity.pick(key(), REPLICAS, is_start=True, now=0)
    assert affinity.lost(home) == [key()]
    for _ in range(2):
        with pytest.raises(SequenceLost, match="start the sequence anew"):
            affinity.pick(key(), REPLICAS, is_start=False, now=1)
    assert affinity.pick(key(), REPLICAS, is_start=True, now=2) in REPLICAS
    assert affinity.pick(key(), REPLICAS, is_start=False, now=3) in REPLICAS


def test_the_error_is_typed_and_not_to_be_retried_as_it_is():
    assert SequenceLost.code == "sequence_lost"
    assert not SequenceLost.retryable


def test_a_restart_goes_where_the_sequence_was():
    affinity = Affinity()
    home = affinity.pick(key(), ["r1"], is_start=True, now=0)
    for name in range(50):
        assert affinity.pick(key(), ["r1", f"x{name}"], is_start=True, now=1) == home


def test_a_draining_replica_gets_the_sequences_it_holds_and_no_new_ones():
    affinity = Affinity()
    home = affinity.pick(key(), ["r1"], is_start=True, now=0)
    assert affinity.pick(key(), ["r2"], is_start=False, now=1, draining=["r1"]) == home
    assert affinity.pick(key(2), ["r2"], is_start=True, now=1, draining=["r1"]) == "r2"
    assert affinity.pick(key(), ["r2"], is_start=True, now=2, draining=["r1"]) == "r2"


def test_memory_is_bounded_by_number_and_by_idle_time():
    affinity = Affinity(max_sequences=3, max_idle_s=10)
    for name in range(1, 6):
        affinity.pick(key(name), REPLICAS, is_start=True, now=name)
    assert len(affinity) == 3
    affinity.pick(key(9), REPLICAS, is_start=True, now=100)
    assert len(affinity) == 1


def test_an_open_sequence_remembers_its_version():
    affinity = Affinity()
    assert affinity.version_of("e", [1, 2], 1) is None
    affinity.pick(key(version=2), REPLICAS, is_start=True, now=0)
    assert affinity.version_of("e", [1, 2], 1) == 2
    affinity.ended(key(version=2))
    assert affinity.version_of("e", [1, 2], 1) is None
