"""Which passes run in the event loop itself: those that are short by their own work, whatever the clock says."""

import asyncio
import threading

import numpy as np
import pytest

from inference.batching.batcher import Batcher
from inference.batching.bounds import Bounds
from inference.batching.window import Rules
from inference.replica.executors import watched
from inference.runtime.runner import Ran

BELOW_S = 1e-3


class Told:
    """Answers at once and says what its passes took; notes the threads that ran them."""

    def __init__(self, clock_s, thread_s=None):
        self.clock_ns, self.thread_ns = int(clock_s * 1e9), None if thread_s is None else int(thread_s * 1e9)
        self.threads = []

    def __call__(self, requests):
        self.threads.append(threading.get_ident())
        return Ran([{"y": one["x"]} for one in requests], infer_ns=self.clock_ns, thread_ns=self.thread_ns)


async def threads_of(model, passes=4):
    batcher = Batcher(model, Bounds(Rules(8, 0.0), inline_below_s=BELOW_S), on_hang=lambda: None)
    batcher.compute.observe(1, BELOW_S / 10)  # as the warm-up saw it
    try:
        for _ in range(passes):
            await batcher.predict({"x": np.zeros((1, 1), "f4")}, 1)
    finally:
        batcher.stop()
    return [one == threading.get_ident() for one in model.threads]


@pytest.mark.parametrize(
    ("clock_s", "thread_s", "inline"),
    [
        (BELOW_S / 2, None, True),
        (BELOW_S * 9, None, False),
        (BELOW_S * 9, BELOW_S / 2, True),  # others ran meanwhile
        (BELOW_S * 9, BELOW_S * 5, False),
    ],
)
async def test_a_pass_is_as_short_as_its_own_work(clock_s, thread_s, inline):
    model = Told(clock_s, thread_s)
    first, *_, last = await threads_of(model)
    assert first, "the warm-up's word goes until passes were seen"
    assert last is inline


async def test_the_processor_time_of_a_pass_is_not_the_clocks():
    class Quiet:
        def began(self, lane):
            pass

        ended = began

    class Sleeper:
        def run_requests(self, requests):
            threading.Event().wait(0.05)
            return Ran([], infer_ns=50_000_000)

    ran = await asyncio.to_thread(watched(Sleeper(), Quiet(), 0, is_timed=True), [])
    assert 0 < ran.thread_ns < ran.infer_ns / 5
    assert (await asyncio.to_thread(watched(Sleeper(), Quiet(), 0), [])).thread_ns is None
