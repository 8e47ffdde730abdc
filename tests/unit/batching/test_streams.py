"""Promises of the executor for decoupled models, with a real event loop and generators that note what becomes of them."""

import asyncio
import gc
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.artifacts.manifest import RuntimeSettings
from inference.batching.streams import StreamBounds, Streamer
from inference.errors import (
    DeadlineExceeded,
    Draining,
    ModelFailed,
    OutOfMemory,
    Overloaded,
    Rejected,
    ReplicaLost,
    SerinusError,
)
from inference.models import LoadContext, load
from inference.replica import executors
from inference.runtime.runner import Runner
from inference.runtime.warmup import WarmUp, warm_up_stream
from inference.runtime.work import Ticket
from tests.support import artifacts


class Counter:
    """Answers 0, 1, 2, ... `x` times; -1 for ever. Notes how many steps were made and which generators were closed."""

    def __init__(self, step_s=0.0):
        self.step_s = step_s
        self.steps = 0
        self.closed = []
        self.at_once = self.most = 0
        self.gate = threading.Event()
        self.gate.set()

    def stream(self, inputs, parameters):
        wanted, at = int(inputs["x"][0]), 0
        try:
            while wanted < 0 or at < wanted:
                self._step()
                yield {"y": np.array([at], "f4")}
                at += 1
        finally:
            self.closed.append(wanted)

    def _step(self):
        self.gate.wait(5)
        self.steps += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        time.sleep(self.step_s)
        self.at_once -= 1


class Reader:
    """A caller: everything that it was told, in order, and whether that was the end."""

    def __init__(self, executor, ticket_of):
        self.told, self.is_final, self.changed = [], False, asyncio.Event()
        self.executor = executor
        self.ticket = ticket_of(self._reply)
        executor.submit(self.ticket)

    def _reply(self, ticket, result, final):
        assert not self.is_final, "told after the end"
        self.is_final = final
        self.told.append(result)
        self.changed.set()

    @property
    def values(self):
        return [float(o.outputs["y"][0]) for o in self.told if not isinstance(o, SerinusError) and o.outputs]

    async def until(self, true):
        async with asyncio.timeout(5):
            while not true():
                self.changed.clear()
                await self.changed.wait()

    async def ended(self):
        await self.until(lambda: self.is_final)
        return self.told[-1]


@pytest.fixture
async def opened():
    made = []

    def build(stream, *, on_hang=lambda: None, **bounds):
        made.append(Streamer(stream, StreamBounds(frozenset({"y"}), **bounds), on_hang=on_hang))
        return made[-1]

    yield build
    for streamer in made:
        streamer.stop()


def ask(executor, count, *, patience=None):
    now = time.monotonic()
    deadline = float("inf") if patience is None else now + patience
    return Reader(executor, lambda reply: Ticket({"x": np.array([count])}, 1, deadline, now, reply))


async def settled(true, timeout_s=5.0):
    async with asyncio.timeout(timeout_s):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("count", [0, 1, 5])
async def test_any_number_of_answers_and_an_empty_final_one(opened, count):
    reader = ask(opened(Counter().stream), count)
    final = await reader.ended()
    assert reader.values == list(range(count))
    assert final.outputs == {}
    assert len(reader.told) == count + 1


async def test_counts_are_one_request_whatever_the_answers(opened):
    executor = opened(Counter(0.002).stream)
    await ask(executor, 5).ended()
    found = executor.statistics
    assert (found.success.count, found.queue.count, found.execution_count, found.compute_infer.count) == (1, 1, 1, 1)
    assert found.compute_infer.ns >= 10e6
    assert executor.in_flight == 0


def places(executor):
    """What was counted of each place: (computed, success, fail, empty, cancelled)."""
    return {
        place: tuple(
            getattr(found, name).count for name in ("compute_infer", "success", "fail", "empty_response", "cancel")
        )
        for place, found in executor.statistics.responses.items()
    }


async def test_answers_are_counted_by_their_place(opened):
    executor = opened(Counter(0.002).stream)
    await ask(executor, 2).ended()
    await ask(executor, 1).ended()
    assert places(executor) == {0: (2, 2, 0, 0, 0), 1: (2, 1, 0, 1, 0), 2: (1, 0, 0, 1, 0)}
    first = executor.statistics.responses[0]
    assert first.success.ns == first.compute_infer.ns >= 4e6
    await ask(executor, 100).ended()
    assert set(places(executor)) == set(range(64)), "bounded, however many answers there are"


async def test_a_held_generator_is_not_advanced(opened):
    model = Counter()
    executor = opened(model.stream)
    reader = ask(executor, -1)
    await reader.until(lambda: len(reader.told) >= 3)
    executor.pause(reader.ticket)
    told = len(reader.told)
    await asyncio.sleep(0.05)
    steps = model.steps
    assert len(reader.told) == told
    assert steps <= told + 1
    await asyncio.sleep(0.05)
    assert model.steps == steps
    executor.resume(reader.ticket)
    await reader.until(lambda: len(reader.told) >= told + 3)
    assert reader.values == list(range(len(reader.values)))
    executor.cancel(reader.ticket)


async def test_who_is_held_gives_his_place_to_the_next(opened):
    executor = opened(Counter().stream)
    slow = ask(executor, -1)
    await slow.until(lambda: slow.told)
    quick = ask(executor, 3)
    await asyncio.sleep(0.03)
    assert not quick.told
    executor.pause(slow.ticket)
    await quick.ended()
    assert quick.values == [0, 1, 2]
    told = len(slow.told)
    executor.resume(slow.ticket)
    await slow.until(lambda: len(slow.told) > told)
    executor.cancel(slow.ticket)


async def test_hesitating_readers_never_have_their_generator_advanced_twice_at_once(opened):
    executor = opened(Counter(0.002).stream, places=2)
    reader = ask(executor, 30)
    await reader.until(lambda: reader.told)
    executor.pause(reader.ticket)
    await asyncio.sleep(0.02)
    for _ in range(3):
        executor.resume(reader.ticket)
        executor.pause(reader.ticket)
    executor.resume(reader.ticket)
    await reader.ended()
    assert reader.values == list(range(30))


async def test_a_held_stream_keeps_one_answer_and_no_more(opened):
    made = []

    def stream(inputs, parameters):
        while True:
            answer = np.ones(1 << 20, "f4")
            made.append(weakref.ref(answer))
            yield {"y": answer}

    executor = opened(stream)
    reader = ask(executor, -1)
    executor.pause(reader.ticket)
    await asyncio.sleep(0.05)
    assert reader.told == []
    gc.collect()
    assert len(made) == 1
    executor.resume(reader.ticket)
    await reader.until(lambda: len(reader.told) >= 20)
    executor.pause(reader.ticket)
    reader.told.clear()
    await asyncio.sleep(0.05)
    gc.collect()
    assert len(made) >= 20
    assert sum(ref() is not None for ref in made) <= 2  # the one that waits, and the generator's own
    executor.cancel(reader.ticket)


async def test_who_leaves_stops_the_generator_before_its_next_step(opened):
    model = Counter(0.005)
    executor = opened(model.stream)
    reader = ask(executor, -1)
    await reader.until(lambda: len(reader.told) >= 2)
    executor.cancel(reader.ticket)
    told, steps = len(reader.told), model.steps
    await settled(lambda: model.closed == [-1])
    assert model.steps <= steps + 1
    assert len(reader.told) == told
    assert not reader.is_final
    await settled(lambda: executor.in_flight == 0)
    assert sum(found[4] for found in places(executor).values()) == 1


async def test_who_leaves_while_held_has_its_generator_closed_too(opened):
    model = Counter()
    executor = opened(model.stream)
    reader = ask(executor, -1)
    await reader.until(lambda: reader.told)
    executor.pause(reader.ticket)
    await asyncio.sleep(0.02)
    executor.cancel(reader.ticket)
    await settled(lambda: model.closed == [-1] and executor.in_flight == 0)


async def test_who_leaves_while_waiting_never_runs(opened):
    model = Counter()
    model.gate.clear()
    executor = opened(model.stream)
    first, second = ask(executor, 1), ask(executor, 2)
    await asyncio.sleep(0.02)
    executor.cancel(second.ticket)
    model.gate.set()
    await first.ended()
    assert model.closed == [1]
    assert executor.statistics.cancelled == 1
    assert executor.queue_depth == executor.in_flight == 0


async def test_the_deadline_ends_a_running_stream(opened):
    model = Counter(0.005)
    executor = opened(model.stream)
    reader = ask(executor, -1, patience=0.05)
    assert isinstance(await reader.ended(), DeadlineExceeded)
    assert reader.values
    await settled(lambda: model.closed == [-1] and executor.in_flight == 0)


async def test_the_deadline_ends_a_held_and_a_waiting_one(opened):
    model = Counter()
    executor = opened(model.stream)
    held = ask(executor, -1, patience=0.05)
    executor.pause(held.ticket)
    model.gate.clear()
    waiting = ask(executor, 1, patience=0.02)
    assert isinstance(await waiting.ended(), DeadlineExceeded)
    assert isinstance(await held.ended(), DeadlineExceeded)
    model.gate.set()
    await settled(lambda: executor.in_flight == 0)
    assert 1 not in model.closed or model.steps


async def test_places_run_side_by_side_and_no_more_of_them(opened):
    model = Counter(0.01)
    executor = opened(model.stream, places=3)
    readers = [ask(executor, 4) for _ in range(6)]
    for reader in readers:
        await reader.ended()
    assert 2 <= model.most <= 3


@pytest.mark.parametrize(
    ("raised", "told"),
    [(ValueError("no"), ModelFailed), (MemoryError(), OutOfMemory), (KeyboardInterrupt(), ModelFailed)],
    ids=["value", "memory", "interrupt"],
)
async def test_an_error_midway_ends_the_request_with_a_typed_error(opened, raised, told):
    def stream(inputs, parameters):
        yield {"y": np.zeros(1, "f4")}
        raise raised

    executor = opened(stream)
    reader = ask(executor, 1)
    assert isinstance(await reader.ended(), told)
    assert reader.values == [0]
    assert executor.statistics.fail.count == 1
    assert places(executor) == {0: (1, 1, 0, 0, 0), 1: (1, 0, 1, 0, 0)}
    assert (await ask(executor, 1).ended()) is not None


async def test_outputs_that_the_model_does_not_have_are_its_failure(opened):
    closed = []

    def stream(inputs, parameters):
        try:
            while True:
                yield {"other": np.zeros(1)}
        finally:
            closed.append(True)

    executor = opened(stream)
    assert isinstance(await ask(executor, 1).ended(), ModelFailed)
    await settled(lambda: closed and executor.in_flight == 0)
    assert places(executor) == {0: (1, 0, 1, 0, 0)}


async def test_a_full_queue_refuses_at_once(opened):
    model = Counter()
    model.gate.clear()
    executor = opened(model.stream, queue_limit=2)
    running = ask(executor, 1)
    await asyncio.sleep(0.02)
    for _ in range(2):
        ask(executor, 1)
    with pytest.raises(Overloaded):
        ask(executor, 1)
    model.gate.set()
    await running.ended()


async def test_draining_finishes_what_runs_and_refuses_what_comes(opened):
    executor = opened(Counter(0.005).stream)
    reader = ask(executor, 5)
    executor.close(Draining())
    with pytest.raises(Draining):
        ask(executor, 1)
    assert await executor.drained(5)
    assert reader.values == [0, 1, 2, 3, 4]
    assert reader.is_final


async def test_stopping_tells_everybody(opened):
    model = Counter(0.01)
    executor = opened(model.stream)
    readers = [ask(executor, -1), ask(executor, 1)]
    await readers[0].until(lambda: readers[0].told)
    executor.stop()
    for reader in readers:
        assert isinstance(await reader.ended(), ReplicaLost)


async def test_a_step_that_hangs_takes_the_process_with_it_after_all_were_told(opened):
    model, hung = Counter(), asyncio.Event()
    model.gate.clear()
    executor = opened(model.stream, hang_timeout_s=0.05, on_hang=hung.set)
    running, waiting = ask(executor, 1), ask(executor, 1)
    await asyncio.wait_for(hung.wait(), 5)
    assert isinstance(await running.ended(), ModelFailed)
    assert isinstance(await waiting.ended(), ReplicaLost)
    model.gate.set()


ACTS = st.lists(
    st.tuples(st.sampled_from(["ask", "pause", "resume", "cancel", "wait", "ask"]), st.integers(0, 6)), max_size=25
)


@given(ACTS, st.integers(1, 3))
def test_whatever_callers_do_each_gets_its_own_answers_once_and_in_order(acts, places):
    async def main():
        model = Counter()
        executor = Streamer(model.stream, StreamBounds(frozenset({"y"}), places=places), on_hang=lambda: None)
        readers, left, sizes = [], set(), []
        for act, number in acts:
            if act == "ask":
                readers.append(ask(executor, number))
                sizes.append(number)
            elif act == "wait":
                await asyncio.sleep(0.0005 * number)
            elif number < len(readers):
                getattr(executor, act)(readers[number].ticket)
                if act == "cancel" and not readers[number].is_final:
                    left.add(number)
        for at, reader in enumerate(readers):
            executor.resume(reader.ticket)
            if at not in left:
                await reader.ended()
        await settled(lambda: executor.in_flight == 0)
        assert executor.queue_depth == 0
        for at, reader in enumerate(readers):
            count = len(reader.values)
            assert reader.values == list(range(count))
            assert count == sizes[at] or at in left
            assert reader.is_final != (at in left)
        executor.stop()

    asyncio.run(main())


async def test_the_echo_model_repeats(tmp_path):
    artifacts.echo(tmp_path, repeat=3, factor=2)
    given = RuntimeSettings(decoupled=True)
    runner = Runner(load("echo", LoadContext(tmp_path, given)))
    assert warm_up_stream(runner).latency_ms.keys() == {1}
    executor = executors.make(runner, given, WarmUp({}, {}), on_hang=lambda: None)
    now, told = time.monotonic(), asyncio.Queue()
    for parameters in ({}, {"repeat": 1}):
        executor.submit(
            Ticket(
                {"input": np.ones((1, 4), "f4")}, 1, float("inf"), now,
                lambda _, result, final: told.put_nowait((result, final)), parameters=parameters,
            )
        )  # fmt: skip
    found = [await asyncio.wait_for(told.get(), 5) for _ in range(6)]
    executor.stop()
    assert [(o.outputs["output"][0, 0] if o.outputs else None, final) for o, final in found] == [
        (2, False), (3, False), (4, False), (None, True), (2, False), (None, True)
    ]  # fmt: skip


PACKAGE = """
import numpy as np
class Model:
    signature = {"inputs": [{"name": "n", "datatype": "INT32", "shape": [1]}],
                 "outputs": [{"name": "i", "datatype": "INT32", "shape": [1]}]}
    def stream(self, inputs, parameters):
        for i in range(int(inputs["n"][0])):
            yield {"i": np.array([i], "i4")}
def load(folder):
    return Model()
"""


def test_a_python_package_streams(tmp_path):
    (tmp_path / "serinus_model.py").write_text(PACKAGE)
    model = load("python", LoadContext(tmp_path, RuntimeSettings(decoupled=True)))
    assert [a["i"].tolist() for a in model.stream({"n": np.array([2])}, {})] == [[0], [1]]
    with pytest.raises(Rejected, match="no predict"):
        load("python", LoadContext(tmp_path, RuntimeSettings()))


def test_a_model_that_cannot_stream_is_refused(tmp_path):
    artifacts.onnx_matmul(tmp_path)
    with pytest.raises(Rejected, match="no stream"):
        load("onnx", LoadContext(tmp_path, RuntimeSettings(decoupled=True)))


@pytest.mark.parametrize("fault", ["names", "kind", "raises"])
def test_warm_up_refuses_answers_that_do_not_fit_the_signature(tmp_path, fault):
    artifacts.echo(tmp_path)
    model = load("echo", LoadContext(tmp_path, RuntimeSettings(decoupled=True)))
    answers = {"names": {"other": np.ones(1, "f4")}, "kind": {"output": np.ones((1, 4), "i8")}, "raises": None}
    model.stream = lambda inputs, parameters: iter([answers[fault]]) if answers[fault] else 1 / 0
    with pytest.raises(Rejected) as error:
        warm_up_stream(Runner(model))
    assert {"names": "other", "kind": "int64", "raises": "ZeroDivisionError"}[fault] in error.value.reason
