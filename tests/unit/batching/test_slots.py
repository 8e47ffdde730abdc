"""Properties of the sequence rules, driven by arbitrary arrivals, ends, failures and callers who leave."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.batching.slots import Batch, Sequences, SlotRules, Step


def rules(**other):
    given = {"is_direct": True, "instances": 1, "max_batch_size": 2, "max_candidates": 8, "max_idle_s": 10.0, **other}
    return SlotRules(**given)


@dataclass(eq=False)
class Request:
    number: int
    id: int
    start: bool
    end: bool
    life: int
    fate: str = ""


class World:
    """Plays the shell: keeps as a sequence's memory the requests that made it, and checks every law at every step."""

    def __init__(self, given):
        self.line = Sequences(given)
        self.rules = given
        self.now = 0.0
        self.requests = []
        self.lives = {}
        self.waiting = {}
        self.running = [None] * given.instances
        self.last_run = {}

    def ask(self, name, *, start=False, end=False, patience=None):
        if not start and not self.line.knows(name):
            return None
        number = len(self.requests)
        if start:
            self.lives[name] = number
        request = Request(number, name, start, end, self.lives[name])
        deadline = float("inf") if patience is None else self.now + patience
        step = Step(request, name, start, end, deadline)
        self.requests.append(request)
        self.waiting[number] = step
        self.line.add(step, self.now)
        self.check()
        return step

    def fate(self, step, what):
        assert not step.of.fate, "answered twice"
        step.of.fate = what
        self.waiting.pop(step.of.number, None)

    def drop(self, step, what):
        self.fate(step, what)
        for orphan in self.line.drop(step, self.now):
            assert not orphan.of.start
            self.fate(orphan, "orphan")
        self.check()

    def tick(self, seconds):
        self.now += seconds
        for step in self.line.late(self.now):
            if step.is_waiting:
                self.drop(step, "late")
        self.line.expire_idle(self.now)
        self.check()

    def run(self, instance):
        if self.running[instance]:
            return
        found = self.line.next_batch(instance, self.now)
        if isinstance(found, Batch):
            self.running[instance] = found
            ids = [step.id for step in found.steps]
            assert len(set(ids)) == len(ids) <= self.rules.max_batch_size
            under_way = [step.id for batch in self.running if batch for step in batch.steps]
            assert len(set(under_way)) == len(under_way), "two requests of one sequence at once"
            for sequence, step in zip(found.sequences, found.steps, strict=True):
                assert not step.of.fate
                assert self.waiting.pop(step.of.number) is step
                assert self.last_run.get(step.id, -1) < step.of.number, "out of order"
                self.last_run[step.id] = step.of.number
                if self.rules.is_direct:
                    assert self.line.slots(instance).count(sequence) == 1
        else:
            assert found > self.now, "asked again for nothing"
        self.check()

    def finish(self, instance, failing=()):
        batch, self.running[instance] = self.running[instance], None
        if batch is None:
            return
        for at, (sequence, step) in enumerate(zip(batch.sequences, batch.steps, strict=True)):
            ran = at not in failing
            if ran:
                past = [] if step.start else sequence.memory
                self.check_state(past, step.of)
                sequence.memory = [*past, step.of]
            self.fate(step, "ran" if ran else "failed")
            for orphan in self.line.finished(sequence, self.now, ran=ran):
                assert not orphan.of.start
                self.fate(orphan, "orphan")
        self.check()

    def check_state(self, past, request):
        made_of = [*past, request]
        assert made_of[0].start, "a request ran without its START"
        assert {one.id for one in made_of} == {request.id}
        assert {one.life for one in made_of} == {request.life}, "state of another life"
        assert not any(one.end for one in past), "state after the END"

    def check(self):
        assert self.line.waiting == len(self.waiting)
        owners = [owner for i in range(self.rules.instances if self.rules.is_direct else 0)
                  for owner in self.line.slots(i) if owner]  # fmt: skip
        assert len(set(map(id, owners))) == len(owners)
        assert self.line.open <= self.rules.max_candidates
        if self.rules.is_direct:
            assert self.line.open == len(owners)

    def play_out(self):
        """Until nothing waits any more."""
        for _ in range(10_000):
            for instance in range(self.rules.instances):
                self.run(instance)
                self.finish(instance)
            if not self.waiting:
                return
            self.tick(max(self.rules.max_idle_s, self.rules.delay_s) + 1e-6)
        raise AssertionError("requests were lost")


RARELY = st.sampled_from([False, False, False, True])
ASK = st.tuples(st.just("ask"), st.integers(1, 3), RARELY, RARELY, st.sampled_from([None, None, None, 0.5, 3.0]))
RUN = st.tuples(st.just("run"), st.integers(0, 1))
FINISH = st.tuples(st.just("finish"), st.integers(0, 1), st.sampled_from([(), (), (0,), (1,)]))
TICK = st.tuples(st.just("tick"), st.floats(0, 4))
LEAVE = st.tuples(st.just("leave"), st.integers(0, 5))
ACTS = st.one_of(ASK, ASK, RUN, RUN, FINISH, TICK, LEAVE)
RULES = st.builds(
    SlotRules,
    is_direct=st.booleans(),
    instances=st.integers(1, 2),
    max_batch_size=st.integers(1, 3),
    max_candidates=st.integers(1, 6),
    max_idle_s=st.sampled_from([1.0, 5.0]),
    delay_s=st.sampled_from([0.0, 0.0, 1.0]),
    preferred=st.sampled_from([(), (2,)]),
    min_utilization=st.sampled_from([0.0, 0.5, 1.0]),
)


@settings(max_examples=100)
@given(RULES, st.lists(ACTS, min_size=10, max_size=50))
def test_no_request_is_lost_answered_twice_reordered_or_fed_anothers_state(given, acts):
    world = World(given)
    for act, *words in acts:
        if act == "ask":
            is_start = words[1] or not world.line.knows(words[0])
            world.ask(words[0], start=is_start, end=words[2], patience=words[3])
        elif act == "tick":
            world.tick(words[0])
        elif act == "leave":
            if world.waiting:
                world.drop(list(world.waiting.values())[words[0] % len(world.waiting)], "left")
        elif words[0] < given.instances:
            world.run(words[0]) if act == "run" else world.finish(words[0], words[1])
    world.play_out()
    assert all(request.fate for request in world.requests)
    world.tick(given.max_idle_s + 1)
    assert world.line.open == 0
    assert world.line.wake_at() == float("inf")


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=25))
def test_without_faults_every_accepted_request_runs_in_order(acts):
    world = World(rules(max_idle_s=1e9, max_candidates=3, is_direct=False))
    for name, end in acts:
        world.ask(name, start=not world.line.knows(name), end=end)
    for name in (1, 2, 3):
        world.ask(name, start=not world.line.knows(name), end=True)
    world.play_out()
    assert {request.fate for request in world.requests} <= {"ran"}


@pytest.fixture
def world():
    return World(rules())


def test_a_request_that_is_not_known_and_does_not_start_is_not_taken(world):
    assert world.ask(1) is None
    world.ask(1, start=True)
    assert world.ask(1) is not None


def test_nothing_may_follow_the_end_but_a_start(world):
    world.ask(1, start=True)
    world.ask(1, end=True)
    assert not world.line.knows(1)
    assert world.ask(1, start=True) is not None


def test_a_sequence_keeps_its_slot_while_others_come_and_go(world):
    first = world.ask(1, start=True)
    world.ask(2, start=True, end=True)
    world.run(0)
    own = world.line.slots(0)[0]
    world.finish(0)
    world.ask(3, start=True)
    world.ask(1)
    assert first.of.fate == "ran"
    assert world.line.slots(0)[0] is own
    assert world.line.slots(0)[1].id == 3


def test_who_finds_no_slot_waits_until_one_is_free(world):
    for name in (1, 2, 3):
        world.ask(name, start=True)
    world.run(0)
    world.finish(0)
    assert world.line.open == 2
    world.run(0)
    assert world.running[0] is None
    world.ask(1, end=True)
    world.run(0)
    world.finish(0)
    assert [owner.id for owner in world.line.slots(0)] == [3, 2]


def test_two_instances_share_the_sequences_evenly():
    world = World(rules(instances=2, max_batch_size=2))
    for name in (1, 2, 3):
        world.ask(name, start=True)
    assert [[s.id if s else 0 for s in world.line.slots(i)] for i in (0, 1)] == [[1, 3], [2, 0]]


def test_idle_sequences_are_ended_and_their_place_is_given_on(world):
    world.ask(1, start=True)
    world.run(0)
    world.finish(0)
    world.tick(9.9)
    assert world.line.knows(1)
    world.tick(0.2)
    assert not world.line.knows(1)
    assert world.line.open == 0


@pytest.mark.parametrize("is_direct", [True, False])
def test_a_free_instance_never_takes_a_sequence_that_runs_elsewhere(is_direct):
    world = World(rules(instances=2, is_direct=is_direct))
    world.ask(1, start=True)
    world.run(0)
    world.ask(1)
    world.run(1)
    assert world.running[1] is None
    world.finish(0)
    world.run(0)
    assert world.running[0] is not None


def test_who_begins_again_after_the_end_queues_behind_those_who_wait_for_a_place():
    world = World(rules(max_batch_size=1))
    world.ask(1, start=True, end=True)
    world.ask(2, start=True, end=True)
    world.ask(1, start=True, end=True)
    order = []
    for _ in range(3):
        world.run(0)
        order.append(world.running[0].steps[0].id)
        world.finish(0)
    assert order == [1, 2, 1]


def test_a_start_that_failed_is_no_start(world):
    world.ask(1, start=True)
    follower = world.ask(1)
    world.run(0)
    world.finish(0, failing=(0,))
    assert follower.of.fate == "orphan"
    assert not world.line.knows(1)


def test_a_sequence_at_work_is_never_idle(world):
    world.ask(1, start=True)
    world.run(0)
    world.finish(0)
    world.tick(9)
    world.ask(1)
    world.run(0)
    world.tick(5)
    assert world.line.knows(1)
    world.finish(0)
    world.tick(9)
    assert world.line.knows(1)


def test_a_start_that_did_not_run_takes_those_with_it_that_relied_on_it(world):
    first = world.ask(1, start=True)
    second = world.ask(1)
    again = world.ask(1, start=True)
    world.drop(first, "left")
    assert second.of.fate == "orphan"
    assert not again.of.fate
    world.play_out()
    assert again.of.fate == "ran"


def test_a_dropped_restart_ends_the_old_life_too(world):
    world.ask(1, start=True)
    world.run(0)
    world.finish(0)
    restart = world.ask(1, start=True)
    follower = world.ask(1)
    world.drop(restart, "left")
    assert follower.of.fate == "orphan"
    assert not world.line.knows(1)
    assert world.line.open == 0


def test_a_broken_sequence_is_over(world):
    world.ask(1, start=True)
    world.run(0)
    batch, world.running[0] = world.running[0], None
    waiting = world.ask(1)
    world.fate(batch.steps[0], "failed")
    for orphan in world.line.finished(batch.sequences[0], 0.0, ran=False, is_broken=True):
        world.fate(orphan, "orphan")
    assert waiting.of.fate == "orphan"
    assert not world.line.knows(1)


def test_oldest_waits_for_a_preferred_size_but_not_longer_than_the_delay():
    world = World(rules(is_direct=False, max_batch_size=8, delay_s=1.0, preferred=(2, 4)))
    world.ask(1, start=True)
    world.run(0)
    assert world.running[0] is None
    world.ask(2, start=True)
    world.ask(3, start=True)
    world.run(0)
    assert len(world.running[0].steps) == 2
    world.finish(0)
    world.tick(1.0)
    world.run(0)
    assert [step.id for step in world.running[0].steps] == [3]


def test_direct_waits_until_enough_slots_are_ready():
    world = World(rules(max_batch_size=4, delay_s=1.0, min_utilization=0.5))
    world.ask(1, start=True)
    world.run(0)
    assert world.running[0] is None
    world.ask(2, start=True)
    world.run(0)
    assert len(world.running[0].steps) == 2


def test_nobody_is_held_past_a_deadline_that_can_be_met():
    world = World(rules(delay_s=5.0, min_utilization=1.0))
    world.ask(1, start=True, patience=1.0)
    assert world.line.next_batch(0, 0.0, step_s=0.2) == pytest.approx(0.8)
    assert isinstance(world.line.next_batch(0, 0.8, step_s=0.2), Batch)


def test_clearing_gives_back_everybody_who_waited(world):
    steps = [world.ask(name, start=True) for name in (1, 2, 3)]
    assert world.line.clear() == steps
    assert world.line.waiting == world.line.open == 0
