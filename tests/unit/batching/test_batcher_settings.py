"""What the version's settings make of the batcher, with a real event loop and a model that one can hold."""

import asyncio
import random
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.batching import policies
from inference.batching.batcher import Batcher
from inference.batching.bounds import Bounds, Lengths
from inference.batching.window import Rules
from inference.errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    Overloaded,
    PoisonInput,
    ReplicaLost,
    SerinusError,
)
from inference.models.contract import Prepared
from inference.protocol.settings import QueuePolicy, RuntimeSettings
from inference.runtime.runner import Ran
from inference.runtime.work import Outcome, Ticket


class Held:
    """Gives `x` back, notes what ran, and stands still while it is held."""

    def __init__(self):
        self.batches, self.gate, self.began = [], threading.Event(), threading.Event()
        self.gate.set()

    def __call__(self, requests):
        self.began.set()
        self.gate.wait(5)
        self.batches.append([int(request["x"][0, 0]) for request in requests])
        return Ran([{"y": request["x"]} for request in requests])


class Caller:
    """Sends numbered requests and notes the answers in the order in which they came."""

    def __init__(self, batcher):
        self.batcher, self.told = batcher, []

    def ask(self, number, rows=1, **fields):
        x = np.full((rows, 1), number, dtype="f4")
        ticket = Ticket({"x": x}, rows, fields.pop("deadline", float("inf")), time.monotonic(), self._reply, **fields)
        self.batcher.submit(ticket)
        return ticket

    def _reply(self, ticket, result, final):
        assert final
        self.told.append((int(ticket.inputs["x"][0, 0]), result))

    def numbers(self):
        return [number for number, _ in self.told]

    async def until(self, count):
        async with asyncio.timeout(5):
            while len(self.told) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.002)


@pytest.fixture
async def make():
    made = []

    def build(run, rules=None, **bounds):
        batcher = Batcher(run, Bounds(rules or Rules(8, 0.005), **bounds), on_hang=lambda: None)
        made.append(batcher)
        return Caller(batcher)

    yield build
    for batcher in made:
        batcher.stop()


async def hold(model, caller):
    model.gate.clear()
    model.began.clear()
    caller.ask(99)
    await asyncio.to_thread(model.began.wait, 5)


def queueing(**fields):
    return policies.of(RuntimeSettings(**fields))


async def test_a_higher_priority_overtakes_and_the_default_is_used_for_zero(make):
    model = Held()
    caller = make(model, Rules(1, 0.0), policies=queueing(priority_levels=3, default_priority_level=2))
    await hold(model, caller)
    for number, priority in ((1, 3), (2, 0), (3, 1), (4, 2), (5, 1)):
        caller.ask(number, priority=priority)
    model.gate.set()
    await caller.until(6)
    assert caller.numbers() == [99, 3, 5, 2, 4, 1]


async def test_a_priority_that_there_is_not_is_refused_and_counted(make):
    caller = make(Held(), policies=queueing(priority_levels=2))
    with pytest.raises(InvalidInput, match="priority"):
        caller.ask(1, priority=3)
    assert caller.batcher.statistics.rejected == {"invalid_input": 1}


async def test_a_levels_full_queue_refuses_that_level_only(make):
    model = Held()
    own = {"2": QueuePolicy(max_queue_size=1)}
    caller = make(model, policies=queueing(priority_levels=2, priority_policies=own))
    await hold(model, caller)
    caller.ask(1, priority=2)
    with pytest.raises(Overloaded, match="Exceeds maximum queue size"):
        caller.ask(2, priority=2)
    caller.ask(3, priority=1)


async def test_who_waits_longer_than_the_queues_policy_allows_is_refused(make):
    model = Held()
    policy = QueuePolicy(default_timeout_us=10_000_000, allow_timeout_override=True)
    caller = make(model, policies=queueing(queue_policy=policy))
    await hold(model, caller)
    caller.ask(1, queue_timeout_us=20_000)
    caller.ask(2)
    await caller.until(1)
    number, error = caller.told[0]
    assert (number, type(error), error.message) == (1, DeadlineExceeded, "Request timeout expired")
    model.gate.set()
    await caller.until(3)
    assert 1 not in [n for batch in model.batches for n in batch]


async def test_a_queue_timeout_ends_with_the_waiting(make):
    model = Held()
    caller = make(model, policies=queueing(queue_policy=QueuePolicy(default_timeout_us=30_000)))
    await hold(model, caller)
    await asyncio.sleep(0.06)
    model.gate.set()
    await caller.until(1)
    assert isinstance(caller.told[0][1], Outcome)


async def test_who_waits_too_long_is_delayed_where_the_policy_says_so(make):
    model = Held()
    policy = QueuePolicy(default_timeout_us=20_000, timeout_action="delay")
    levels = queueing(priority_levels=2, priority_policies={"1": policy})
    caller = make(model, Rules(1, 0.0), policies=levels)
    await hold(model, caller)
    caller.ask(1, priority=1)
    caller.ask(2, priority=2)
    await asyncio.sleep(0.06)
    caller.ask(3, priority=1)
    model.gate.set()
    await caller.until(4)
    assert caller.numbers() == [99, 3, 2, 1]


async def test_nothing_runs_until_so_many_wait_and_then_all_is_as_ever(make):
    model = Held()
    caller = make(model, Rules(8, 0.0), delay_until=5)
    for number in range(4):
        caller.ask(number)
    await asyncio.sleep(0.05)
    assert model.batches == []
    caller.ask(4)
    await caller.until(5)
    assert model.batches == [[0, 1, 2, 3, 4]]
    caller.ask(5)
    await caller.until(6)
    assert model.batches[1:] == [[5]]


async def test_a_delayed_start_still_keeps_deadlines(make):
    caller = make(Held(), delay_until=5)
    caller.ask(1, deadline=time.monotonic() + 0.03)
    await caller.until(1)
    assert isinstance(caller.told[0][1], DeadlineExceeded)


async def test_a_maximum_delay_holds_a_small_batch_even_when_nobody_is_expected(make):
    model = Held()
    caller = make(model, Rules(4, 0.0, (), 0.08))
    began = time.monotonic()
    caller.ask(1)
    await asyncio.sleep(0.02)
    caller.ask(2)
    await caller.until(2)
    assert time.monotonic() - began >= 0.08
    assert model.batches == [[1, 2]]
    began = time.monotonic()
    for number in range(4):
        caller.ask(number)
    await caller.until(6)
    assert time.monotonic() - began < 0.07
    assert model.batches[1:] == [[0, 1, 2, 3]]


async def test_a_preferred_size_goes_at_once_and_the_rest_waits(make):
    model = Held()
    caller = make(model, Rules(8, 0.0, (4,), 0.1))
    for number in range(5):
        caller.ask(number)
    await caller.until(4)
    assert model.batches == [[0, 1, 2, 3]]
    await caller.until(5)
    assert model.batches[1:] == [[4]]


async def test_lanes_run_side_by_side(make):
    both = threading.Barrier(2)

    def run(requests):
        both.wait(5)
        return Ran([{"y": request["x"]} for request in requests])

    caller = make([run, run], Rules(1, 0.0))
    for number in (1, 2):
        caller.ask(number)
    await caller.until(2)
    assert caller.batcher.in_flight == 0


async def test_answers_leave_in_order_although_the_second_lane_is_quicker(make):
    slow = threading.Event()

    def run(requests):
        if int(requests[0]["x"][0, 0]) == 0:
            slow.wait(5)
        return Ran([{"y": request["x"]} for request in requests])

    caller = make([run, run], Rules(1, 0.0), preserve_ordering=True)
    for number in range(4):
        caller.ask(number)
    await asyncio.sleep(0.05)
    assert caller.told == []
    slow.set()
    await caller.until(4)
    assert caller.numbers() == [0, 1, 2, 3]


async def test_one_hung_lane_fails_its_callers_and_loses_the_others():
    hung, ended = threading.Event(), asyncio.Event()

    def run(requests):
        if int(requests[0]["x"][0, 0]) == 0:
            hung.wait(5)
        return Ran([{"y": request["x"]} for request in requests])

    batcher = Batcher([run, run], Bounds(Rules(1, 0.0), hang_timeout_s=0.1), on_hang=ended.set)
    caller = Caller(batcher)
    caller.ask(0)
    for number in range(1, 5):
        caller.ask(number)
    await asyncio.wait_for(ended.wait(), 2)
    hung.set()
    results = dict(caller.told)
    assert isinstance(results[0], ModelFailed)
    assert all(isinstance(results[n], Outcome) for n in range(1, 5))
    with pytest.raises(ReplicaLost):
        caller.ask(9)
    batcher.stop()


async def test_a_request_is_prepared_once_on_another_thread_and_bad_ones_fail_alone():
    threads, ran = [], []

    def prepare(requests):
        threads.append(threading.current_thread())
        return [
            InvalidInput("no") if int(r["x"][0, 0]) == 3 else Prepared({"x": r["x"] * 10}, int(r["x"][0, 0]), 1)
            for r in requests
        ]

    def run(requests):
        ran.extend(int(r["x"][0, 0]) for r in requests)
        return Ran([{"y": r["x"]} for r in requests])

    def restore(outputs, length):
        return {"y": outputs["y"] + length}

    batcher = Batcher(run, Bounds(Rules(8, 0.0)), on_hang=lambda: None, lengths=Lengths(prepare, restore, pads=True))
    x = [np.full((1, 1), n, dtype="f4") for n in range(1, 6)]
    results = await asyncio.gather(*(batcher.predict({"x": one}, 1) for one in x), return_exceptions=True)
    assert [type(r).__name__ for r in results] == ["Outcome", "Outcome", "InvalidInput", "Outcome", "Outcome"]
    assert [r.outputs["y"].item() for r in results if isinstance(r, Outcome)] == [11, 22, 44, 55]
    assert sorted(ran) == [10, 20, 40, 50]
    assert threading.current_thread() not in threads
    assert (batcher.in_flight, batcher.statistics.rejected) == (0, {"invalid_input": 1})
    batcher.stop()


async def test_a_cancelled_or_late_request_is_not_run_when_its_preparing_ends():
    gate, ran = threading.Event(), []

    def prepare(requests):
        gate.wait(5)
        return [Prepared(r, 1, 1) for r in requests]

    def run(requests):
        ran.extend(int(r["x"][0, 0]) for r in requests)
        return Ran([{"y": r["x"]} for r in requests])

    batcher = Batcher(run, Bounds(Rules(8, 0.0)), on_hang=lambda: None, lengths=Lengths(prepare))
    caller = Caller(batcher)
    gone = caller.ask(1)
    caller.ask(2, deadline=time.monotonic() + 0.03)
    caller.ask(3)
    batcher.cancel(gone)
    await caller.until(1)
    assert isinstance(caller.told[0][1], DeadlineExceeded)
    gate.set()
    await caller.until(2)
    assert (ran, caller.numbers(), batcher.in_flight) == ([3], [2, 3], 0)
    batcher.stop()


@given(
    seed=st.integers(0, 2**32 - 1), lanes=st.integers(1, 3), ordered=st.booleans(), levels=st.integers(0, 3), late=st.booleans()
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_every_request_ends_exactly_once_whatever_happens(seed, lanes, ordered, levels, late):
    async def play():
        rng, told, ran = random.Random(seed), {}, []

        def run(requests):
            ran.append(sum(r["x"].shape[0] for r in requests))
            time.sleep(rng.random() * 0.002)
            return Ran([PoisonInput() if rng.random() < 0.1 else {"y": r["x"]} for r in requests])

        fields = {
            "priority_levels": levels,
            "queue_policy": QueuePolicy(max_queue_size=20, default_timeout_us=5000 * late),
        }
        bounds = Bounds(Rules(6, 0.001), queue_limit=30, policies=queueing(**fields), preserve_ordering=ordered)
        batcher, tickets, gone = Batcher([run] * lanes, bounds, on_hang=lambda: None), [], set()

        def reply(ticket, result, final):
            assert ticket not in told
            assert ticket not in gone
            told[ticket] = result

        for _ in range(80):
            rows = rng.randint(1, 6)
            deadline = time.monotonic() + rng.choice([0.002, 5, float("inf")])
            ticket = Ticket({"x": np.zeros((rows, rng.randint(1, 2)))}, rows, deadline, time.monotonic(), reply)
            ticket.key, ticket.priority = rng.choice("ab"), rng.randint(0, levels)
            try:
                batcher.submit(ticket)
            except SerinusError:
                continue
            tickets.append(ticket)
            if rng.random() < 0.15:
                one = rng.choice(tickets)
                if one not in told:
                    gone.add(one)
                batcher.cancel(one)
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.003)
        assert await batcher.drained(5)
        await asyncio.sleep(0)
        assert set(told) == set(tickets) - gone
        assert all(1 <= rows <= 6 for rows in ran)
        sums = batcher.statistics
        assert sums.execution_count == len(ran)
        answered = sum(isinstance(one, Outcome) for one in told.values())
        # Whoever leaves while an answer is held back for its turn was answered, as far as the sums know.
        assert answered <= sums.success.count <= answered + len(gone) * ordered
        assert sums.success.count == sums.queue.count == sums.compute_output.count
        assert (batcher._line.count, batcher._line.rows, batcher._passes.rows) == (0, 0, 0)
        batcher.stop()

    asyncio.run(play())
