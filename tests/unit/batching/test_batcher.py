"""Promises of the batcher, with a real event loop and a model that one can hold."""

import asyncio
import threading
import time

import numpy as np
import pytest

from inference.batching import policies
from inference.batching.batcher import Batcher
from inference.batching.bounds import Bounds
from inference.batching.window import Rules
from inference.errors import (
    DeadlineExceeded,
    Draining,
    InvalidInput,
    ModelFailed,
    Overloaded,
    PoisonInput,
    ReplicaLost,
)
from inference.protocol.messages import BACKGROUND
from inference.protocol.settings import RuntimeSettings
from inference.runtime.runner import Ran
from inference.runtime.work import Ticket, awaited


class Doubler:
    """Doubles `x`, notes what it ran, and stands still while it is held."""

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.began = threading.Event()

    def __call__(self, requests):
        self.began.set()
        self.gate.wait(5)
        self.batches.append([request["x"][:, 0].tolist() for request in requests])
        return Ran([PoisonInput() if (r["x"] == 13).any() else {"y": r["x"] * 2} for r in requests])

    @property
    def values(self):
        return [value for batch in self.batches for request in batch for value in request]


def rows(*values, width=1):
    return {"x": np.repeat(np.array(values, dtype="f4")[:, None], width, axis=1)}


@pytest.fixture
async def make():
    made = []

    def build(model, *, largest=8, window_s=0.005, hang_s=5.0, on_hang=lambda: None, **bounds):
        bounds = Bounds(Rules(largest, window_s), hang_timeout_s=hang_s, **bounds)
        made.append(Batcher(model, bounds, on_hang=on_hang))
        return made[-1]

    yield build
    for batcher in made:
        batcher.stop()


class Asked(Ticket):
    """A ticket whose caller waits on `future`."""

    future: object = None


def submit(batcher, inputs, count, deadline=float("inf"), priority=0):
    future = asyncio.get_running_loop().create_future()
    ticket = Asked(inputs, count, deadline, time.monotonic(), awaited(future), priority)
    ticket.future = future
    batcher.submit(ticket)
    return ticket


async def hold(model, batcher):
    """Keeps the executor busy with a request of its own."""
    model.gate.clear()
    model.began.clear()
    ticket = submit(batcher, rows(99), 1)
    await asyncio.to_thread(model.began.wait, 5)
    return ticket


async def test_a_lone_request_runs_at_once(make):
    batcher = make(Doubler(), window_s=5.0)
    began = time.monotonic()
    outcome = await batcher.predict(rows(3), 1)
    assert outcome.outputs["y"].tolist() == [[6]]
    assert outcome.batch_size == 1
    assert time.monotonic() - began < 2.5


async def test_requests_that_wait_together_run_together_and_get_their_own_rows_back(make):
    model = Doubler()
    batcher = make(model)
    first = await hold(model, batcher)
    waiting = [submit(batcher, rows(*values), len(values)) for values in ((1,), (2, 3), (4, 5, 6))]
    model.gate.set()
    outcomes = [await ticket.future for ticket in waiting]
    await first.future
    assert [outcome.outputs["y"][:, 0].tolist() for outcome in outcomes] == [[2], [4, 6], [8, 10, 12]]
    assert {outcome.batch_size for outcome in outcomes} == {6}
    assert len(model.batches) == 2
    assert {size: batch.compute_infer.count for size, batch in batcher.statistics.batches.items()} == {1: 1, 6: 1}


async def test_a_batch_never_exceeds_the_maximum_and_keeps_the_order(make):
    model = Doubler()
    batcher = make(model, largest=4)
    await hold(model, batcher)
    tickets = [submit(batcher, rows(*[n] * size), size) for n, size in enumerate((3, 2, 2, 1, 4))]
    model.gate.set()
    await asyncio.gather(*(ticket.future for ticket in tickets))
    assert [sum(len(request) for request in batch) for batch in model.batches[1:]] == [3, 4, 1, 4]
    assert model.values[1:] == [0, 0, 0, 1, 1, 2, 2, 3, 4, 4, 4, 4]


async def test_different_shapes_are_not_merged(make):
    model = Doubler()
    batcher = make(model)
    await hold(model, batcher)
    tickets = [submit(batcher, rows(n, width=1 + n % 2), 1) for n in range(6)]
    model.gate.set()
    outcomes = await asyncio.gather(*(ticket.future for ticket in tickets))
    assert [outcome.batch_size for outcome in outcomes] == [3] * 6
    assert [outcome.outputs["y"].shape[1] for outcome in outcomes] == [1, 2, 1, 2, 1, 2]


async def test_a_full_line_refuses_at_once_and_says_when_to_come_back(make):
    model = Doubler()
    batcher = make(model, queue_limit=2)
    await hold(model, batcher)
    tickets = [submit(batcher, rows(n), 1) for n in range(2)]
    with pytest.raises(Overloaded) as refused:
        submit(batcher, rows(3), 1)
    assert refused.value.retry_after_s > 0
    batcher.cancel(tickets[0])
    submit(batcher, rows(4), 1)


async def test_a_request_larger_than_a_batch_is_refused(make):
    with pytest.raises(InvalidInput, match="batch-size must be <= 8"):
        submit(make(Doubler()), rows(*range(9)), 9)


async def test_expired_work_is_never_executed(make):
    model = Doubler()
    batcher = make(model)
    await hold(model, batcher)
    doomed = submit(batcher, rows(7), 1, deadline=time.monotonic() + 0.02)
    kept = submit(batcher, rows(8), 1, deadline=time.monotonic() + 30)
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(doomed.future, 1)
    model.gate.set()
    await kept.future
    assert 7 not in model.values
    assert batcher.statistics.rejected == {"deadline_exceeded": 1}


async def test_a_deadline_in_the_past_is_refused_before_it_waits(make):
    model = Doubler()
    with pytest.raises(DeadlineExceeded):
        submit(make(model), rows(1), 1, deadline=time.monotonic() - 1)
    assert model.batches == []


async def test_a_running_request_is_answered_at_its_deadline(make):
    model = Doubler()
    batcher = make(model)
    model.gate.clear()
    ticket = submit(batcher, rows(7), 1, deadline=time.monotonic() + 0.05)
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(ticket.future, 1)
    model.gate.set()
    assert (await batcher.predict(rows(1), 1)).outputs["y"].tolist() == [[2]]


async def test_cancelled_callers_are_dropped_before_the_batch_forms(make):
    model = Doubler()
    batcher = make(model)
    await hold(model, batcher)
    leaving = [asyncio.create_task(batcher.predict(rows(n), 1)) for n in (1, 2)]
    staying = asyncio.create_task(batcher.predict(rows(3), 1))
    await asyncio.sleep(0.01)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    assert batcher.queue_depth == 1
    model.gate.set()
    assert (await staying).outputs["y"].tolist() == [[6]]
    assert sorted(model.values) == [3, 99]
    assert batcher.statistics.cancelled == 2


async def test_only_the_poisonous_request_fails(make):
    model = Doubler()
    batcher = make(model)
    await hold(model, batcher)
    tickets = [submit(batcher, rows(n), 1) for n in (1, 13, 2)]
    model.gate.set()
    outcomes = await asyncio.gather(*(ticket.future for ticket in tickets), return_exceptions=True)
    assert [type(outcome).__name__ for outcome in outcomes] == ["Outcome", "PoisonInput", "Outcome"]


@pytest.mark.parametrize("levels", [0, 2])
async def test_copies_of_live_requests_run_behind_all_others(make, levels):
    model = Doubler()
    batcher = make(model, largest=1, policies=policies.of(RuntimeSettings(priority_levels=levels)))
    await hold(model, batcher)
    tickets = [submit(batcher, rows(n), 1, priority=BACKGROUND if n > 10 else 0) for n in (11, 12, 1, 2)]
    model.gate.set()
    await asyncio.gather(*(ticket.future for ticket in tickets))
    assert model.values[1:] == [1, 2, 11, 12]


async def test_copies_fill_no_more_than_half_of_the_line(make):
    model = Doubler()
    batcher = make(model, largest=1, queue_limit=4)
    await hold(model, batcher)
    copies = [submit(batcher, rows(n), 1, priority=BACKGROUND) for n in (1, 2)]
    with pytest.raises(Overloaded):
        submit(batcher, rows(3), 1, priority=BACKGROUND)
    live = [submit(batcher, rows(n), 1) for n in (4, 5)]
    model.gate.set()
    await asyncio.gather(*(ticket.future for ticket in [*copies, *live]))
    assert model.values[1:] == [4, 5, 1, 2]


@pytest.mark.parametrize("thrown", [RuntimeError, SystemExit, KeyboardInterrupt])
async def test_whatever_a_pass_raises_its_callers_get_a_typed_error_and_the_lane_lives(make, thrown):
    failures = [thrown("x")]

    def run(requests):
        if failures:
            raise failures.pop()
        return Ran([{"y": request["x"]} for request in requests])

    batcher = make(run)
    with pytest.raises(ModelFailed):
        await batcher.predict(rows(1), 1)
    assert (await batcher.predict(rows(1), 1)).batch_size == 1


async def test_a_hung_pass_fails_its_callers_then_ends_the_process(make):
    model, ended = Doubler(), asyncio.Event()
    batcher = make(model, hang_s=0.1, on_hang=ended.set)
    running = await hold(model, batcher)
    waiting = submit(batcher, rows(1), 1)
    await asyncio.wait_for(ended.wait(), 2)
    model.gate.set()
    with pytest.raises(ModelFailed, match="did not answer"):
        await running.future
    with pytest.raises(ReplicaLost):
        await waiting.future
    with pytest.raises(ReplicaLost):
        submit(batcher, rows(1), 1)


async def test_draining_refuses_newcomers_and_answers_the_others(make):
    model = Doubler()
    batcher = make(model)
    running = await hold(model, batcher)
    waiting = submit(batcher, rows(4), 1)
    batcher.close()
    with pytest.raises(Draining):
        submit(batcher, rows(5), 1)
    assert not await batcher.drained(0.02)
    model.gate.set()
    assert await batcher.drained(2)
    assert running.future.done()
    assert waiting.future.result().outputs["y"].tolist() == [[8]]


async def test_32_clients_in_a_closed_loop_share_large_batches(make):
    sizes = []

    def run(requests):
        sizes.append(len(requests))
        time.sleep(0.05)  # long enough for all to come back, on a busy machine too
        return Ran([{"y": request["x"]} for request in requests])

    batcher = make(run, largest=64)

    async def client():
        for _ in range(15):
            await batcher.predict(rows(1), 1)

    await asyncio.gather(*(client() for _ in range(32)))
    assert sum(sizes) == 480
    assert len(sizes) < 30


async def test_nothing_is_left_behind(make):
    model = Doubler()
    batcher = make(model)
    await asyncio.gather(*(batcher.predict(rows(n), 1) for n in range(20, 70)))
    assert batcher.in_flight == 0
    assert batcher._line.rows == 0
    sums = batcher.statistics
    assert sums.success.count == sums.queue.count == sums.compute_infer.count == sums.inference_count == 50
    assert sums.execution_count == sum(batch.compute_infer.count for batch in sums.batches.values())
