"""Converge as a pure decision: idempotent, fenced by generation, old beside new, exclusive devices one at a time."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from inference.host.decide import Held, Start, Stop, accept, decide
from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import AdapterSpec, ReplicaSpec
from tests.support.hosts import spec

READY, LOADING, FAILED = ReplicaPhase.READY, ReplicaPhase.LOADING, ReplicaPhase.FAILED


def held(generation: int, phase: ReplicaPhase = READY, *, stopping: bool = False) -> Held:
    return Held("a", generation, phase, stopping)


def test_what_is_wanted_and_not_held_starts() -> None:
    assert decide({"a": spec()}, []) == [Start(spec())]


def test_what_is_held_and_not_wanted_stops_once() -> None:
    assert decide({}, [held(1)]) == [Stop("a", 1)]
    assert decide({}, [held(1, stopping=True)]) == []


def test_a_failed_replica_is_neither_started_nor_stopped() -> None:
    assert decide({"a": spec()}, [held(1, FAILED)]) == []


def test_the_old_generation_stays_until_the_new_one_is_ready() -> None:
    wanted = {"a": spec(generation=2)}
    assert decide(wanted, [held(1)]) == [Start(spec(generation=2))]
    assert decide(wanted, [held(1), held(2, LOADING)]) == []
    assert decide(wanted, [held(1), held(2)]) == [Stop("a", 1)]


def test_an_old_generation_that_serves_nobody_goes_at_once() -> None:
    assert decide({"a": spec(generation=2)}, [held(1, FAILED), held(2, LOADING)]) == [Stop("a", 1)]


def test_an_exclusive_device_is_left_first() -> None:
    wanted = {"a": spec(generation=2, device="cuda:0")}
    assert decide(wanted, [held(1)]) == [Stop("a", 1)]
    assert decide(wanted, [held(1, stopping=True)]) == []
    assert decide(wanted, []) == [Start(wanted["a"])]


def test_the_same_generation_wanted_again_waits_until_it_has_drained() -> None:
    assert decide({"a": spec()}, [held(1, ReplicaPhase.DRAINING, stopping=True)]) == []


def test_an_older_generation_than_seen_changes_nothing() -> None:
    wanted = {"a": spec(generation=3)}
    assert accept(wanted, {"a": 3}, [spec(generation=2)]) == wanted
    assert accept({}, {"a": 3}, [spec(generation=2)]) == {}


def test_the_same_generation_changes_its_adapters_and_nothing_else() -> None:
    adapter = AdapterSpec("fr", "fr:1", "0" * 64, [])
    accepted = accept({"a": spec()}, {"a": 1}, [spec(adapters=[adapter], threads=7)])
    assert accepted == {"a": spec(adapters=[adapter])}
    assert decide(accepted, [held(1)]) == []


def test_the_newest_of_doubled_specs_counts_in_any_order() -> None:
    both = [spec(generation=2), spec(generation=1)]
    assert accept({}, {}, both) == accept({}, {}, both[::-1]) == {"a": spec(generation=2)}


SPECS = st.lists(
    st.builds(spec, st.sampled_from("abc"), st.integers(1, 4), device=st.sampled_from(["cpu", "tpu:0"])), max_size=5
)


class World:
    """Obeys the actions as the supervisor does, with arbitrary progress in between."""

    def __init__(self) -> None:
        self.wanted: dict[str, ReplicaSpec] = {}
        self.newest: dict[str, int] = {}
        self.held: list[Held] = []

    def converge(self, specs: list[ReplicaSpec]) -> None:
        self.wanted = accept(self.wanted, self.newest, specs)
        for one in self.wanted.values():
            assert one.generation >= self.newest.get(one.id, 0), "a fence was lowered"
            self.newest[one.id] = one.generation
        self.step()

    def step(self) -> None:
        for action in decide(self.wanted, self.held):
            if isinstance(action, Start):
                key = (action.spec.id, action.spec.generation)
                assert key not in {(h.id, h.generation) for h in self.held}, "started twice"
                if action.spec.device != "cpu":
                    assert action.spec.id not in {h.id for h in self.held}, "an exclusive device was shared"
                self.held.append(Held(*key, LOADING, stopping=False))
            else:
                self.held = [
                    replace(h, stopping=True) if (h.id, h.generation) == (action.id, action.generation) else h
                    for h in self.held
                ]

    def progress(self, draw: st.DataObject) -> None:
        moved = []
        for one in self.held:
            fate = draw.draw(st.sampled_from(["stay", "ready", "fail", "gone"]))
            if fate == "gone" and one.stopping:
                continue
            moved.append(replace(one, phase=READY) if fate == "ready" else one)
        self.held = moved
        self.step()


@given(st.lists(SPECS, max_size=6), st.data())
def test_it_reaches_exactly_what_is_wanted_and_then_rests(rounds: list[list[ReplicaSpec]], draw: st.DataObject) -> None:
    world = World()
    for specs in rounds:
        world.converge(specs)
        world.progress(draw)
    for _ in range(4):
        world.held = [replace(h, phase=READY) for h in world.held if not h.stopping]
        world.step()
    assert {(h.id, h.generation) for h in world.held} == {(s.id, s.generation) for s in world.wanted.values()}
    assert decide(world.wanted, world.held) == []
