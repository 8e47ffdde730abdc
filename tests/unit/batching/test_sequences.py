"""Promises of the sequence executor, with a real event loop and real models whose sums one can calculate by hand."""

import asyncio
import random
import threading
import time

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import (
    DeadlineExceeded,
    Draining,
    InvalidInput,
    ModelFailed,
    Overloaded,
    PoisonInput,
    ReplicaLost,
)
from inference.models import LoadContext, load
from inference.models.shaped import ShapedModel
from inference.protocol.messages import SequenceControl
from inference.protocol.settings import RuntimeSettings
from inference.protocol.signatures import public_signature
from inference.replica import executors
from inference.runtime.runner import Runner
from inference.runtime.warmup import WarmUp, warm_up
from inference.runtime.work import Ticket, awaited
from tests.support import sequences

NO_WARM_UP = WarmUp({}, {})
START_WORDS = (
    "inference request for sequence {} to model 'm' must specify the START flag on the first request of the sequence"
)


def settings(**other):
    sequence = {"states": [sequences.STATE], **other.pop("sequence", {})}
    return msgspec.convert({"sequence": sequence, **other}, RuntimeSettings)


class Asked(Ticket):
    future: object = None


class Gated:
    """A model that stands still while it is held, and notes the batches it ran."""

    def __init__(self, model):
        self._model = model
        self.gate, self.began = threading.Event(), threading.Event()
        self.gate.set()
        self.batches = []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def run(self, inputs):
        self.began.set()
        self.gate.wait(5)
        self.batches.append(inputs["x"][:, 0].tolist())
        if (inputs["x"] == 13).any():
            raise RuntimeError("asked to raise")
        return self._model.run(inputs)


class Door:
    """Asks the executor as the server does."""

    def __init__(self, model, given, on_hang=lambda: None):
        self.model = Gated(model)
        self.runner = Runner(self.model)
        self.runner.mark_ready({"x": np.ones((1, 1), "f4"), "sum_in": np.zeros((1, 1), "f4")})
        self.executor = executors.make(self.runner, given, NO_WARM_UP, on_hang=on_hang, model="m")

    def ask(self, name, value, *, start=False, end=False, patience=None, rows=1):
        future = asyncio.get_running_loop().create_future()
        now = time.monotonic()
        deadline = float("inf") if patience is None else now + patience
        control = SequenceControl(name, start, end) if name is not None else None
        inputs = {"x": np.full((rows, 1), value, "f4")}
        ticket = Asked(inputs, rows, deadline, now, awaited(future), sequence=control)
        ticket.future = future
        self.executor.submit(ticket)
        return ticket

    async def total(self, *words, **more):
        outcome = await self.ask(*words, **more).future
        return float(outcome.outputs["total"][0, 0])

    async def hold(self):
        """Keeps the model busy with a sequence of its own."""
        self.model.gate.clear()
        self.model.began.clear()
        ticket = self.ask(10_000, 1, start=True, end=True)
        await asyncio.to_thread(self.model.began.wait, 5)
        return ticket


@pytest.fixture
def summing(tmp_path):
    sequences.summing_onnx(tmp_path)

    def make(given):
        return load("onnx", LoadContext(tmp_path, given))

    return make


@pytest.fixture
async def door(summing):
    made = []

    def open_door(model=None, **other):
        on_hang = other.pop("on_hang", lambda: None)
        given = settings(**other)
        made.append(Door(model or summing(given), given, on_hang))
        return made[-1]

    yield open_door
    for one in made:
        one.model.gate.set()
        one.executor.stop()


@pytest.fixture(params=["direct", "oldest"])
def strategy(request):
    return {"strategy": request.param}


def test_clients_do_not_see_state_controls_and_constants(summing):
    given = settings(constants={"k": 1})
    model = summing(settings())
    assert {spec.name for spec in model.signature.inputs} == {"x", "sum_in"}
    public = public_signature(model.signature, given)
    assert [spec.name for spec in public.inputs] == ["x"]
    assert [spec.name for spec in public.outputs] == ["total"]


def test_the_whole_model_can_be_warmed_up(summing):
    assert set(warm_up(Runner(summing(settings(max_batch_size=8)))).latency_ms) == {1, 8}


async def test_each_sequence_has_its_own_sum(door, strategy):
    door = door(sequence=strategy)
    assert await door.total(1, 1, start=True) == 1
    assert await door.total("one", 10, start=True) == 10
    assert await door.total(1, 2) == 3
    assert await door.total("one", 20) == 30
    assert await door.total(1, 3, end=True) == 6
    assert await door.total(1, 5, start=True) == 5
    assert await door.total(1, 7, start=True) == 7


async def test_answers_hold_no_state(door):
    outcome = await door().ask(1, 1, start=True).future
    assert outcome.outputs.keys() == {"total"}


async def test_a_pipelined_sequence_runs_in_order(door, strategy):
    door = door(sequence=strategy)
    tickets = [door.ask(1, value, start=not at, end=at == 9) for at, value in enumerate(range(1, 11))]
    totals = [float((await ticket.future).outputs["total"][0, 0]) for ticket in tickets]
    assert totals == np.cumsum(range(1, 11)).tolist()
    assert all(len(batch) == 1 for batch in door.model.batches)


async def test_sequences_that_wait_together_run_together(door, strategy):
    door = door(sequence=strategy)
    held = await door.hold()
    tickets = [door.ask(name, name, start=True) for name in range(1, 9)]
    door.model.gate.set()
    outcomes = [await ticket.future for ticket in tickets]
    assert [float(outcome.outputs["total"][0, 0]) for outcome in outcomes] == list(range(1, 9))
    assert {outcome.batch_size for outcome in outcomes} == {8}
    await held.future


@pytest.mark.parametrize("name", [None, 0, ""], ids=["none", "zero", "empty"])
async def test_a_request_without_a_correlation_id_is_refused(door, name):
    with pytest.raises(InvalidInput, match="to model 'm' must specify a non-zero or non-empty correlation ID"):
        door().ask(name, 1, start=True)


@pytest.mark.parametrize("name", [7, "seven"])
async def test_the_first_request_must_start(door, name):
    with pytest.raises(InvalidInput) as error:
        door().ask(name, 1)
    assert error.value.message == START_WORDS.format(name)


async def test_several_rows_in_a_request_are_refused(door):
    with pytest.raises(InvalidInput, match="must specify batch-size 1 due to requirements of sequence batcher"):
        door().ask(1, 1, start=True, rows=2)


async def test_after_the_end_a_sequence_must_start_again(door):
    door = door()
    await door.total(1, 1, start=True)
    await door.total(1, 1, end=True)
    with pytest.raises(InvalidInput, match="must specify the START flag"):
        door.ask(1, 1)
    assert door.executor.statistics.open_sequences == 0


async def test_an_idle_sequence_is_forgotten(door):
    door = door(sequence={"max_idle_us": 30_000})
    await door.total(1, 1, start=True)
    assert door.executor.statistics.open_sequences == 1
    await asyncio.sleep(0.1)
    assert door.executor.statistics.open_sequences == 0
    with pytest.raises(InvalidInput, match="must specify the START flag"):
        door.ask(1, 1)


async def test_who_finds_no_slot_waits_until_one_is_free(door):
    door = door(max_batch_size=1)
    await door.total(1, 1, start=True)
    second = door.ask(2, 5, start=True)
    await asyncio.sleep(0.05)
    assert not second.future.done()
    assert door.executor.queue_depth == 1
    await door.total(1, 1, end=True)
    assert float((await second.future).outputs["total"][0, 0]) == 5


async def test_waiting_for_a_slot_ends_with_the_deadline(door):
    door = door(max_batch_size=1)
    await door.total(1, 1, start=True)
    second = door.ask(2, 5, start=True, patience=0.05)
    third = door.ask(2, 5)
    with pytest.raises(DeadlineExceeded):
        await second.future
    with pytest.raises(InvalidInput, match="must specify the START flag"):
        await third.future
    assert door.executor.in_flight == 0


async def test_a_full_queue_refuses_at_once(door):
    door = door(queue_limit=2)
    await door.hold()
    for name in (1, 2):
        door.ask(name, 1, start=True)
    with pytest.raises(Overloaded) as error:
        door.ask(3, 1, start=True)
    assert error.value.retry_after_s > 0
    assert door.executor.statistics.rejected == {"overloaded": 1}


async def test_a_cancelled_request_never_runs_and_leaves_the_state_as_it_was(door, strategy):
    door = door(sequence=strategy)
    await door.total(1, 1, start=True)
    held = await door.hold()
    gone = door.ask(1, 100)
    after = door.ask(1, 2)
    door.executor.cancel(gone)
    door.model.gate.set()
    assert float((await after.future).outputs["total"][0, 0]) == 3
    assert not gone.future.done()
    assert [100.0] not in door.model.batches
    assert door.executor.statistics.cancelled == 1
    await held.future


async def test_a_poisonous_request_costs_its_neighbours_nothing_and_its_own_sequence_goes_on(door, strategy):
    door = door(sequence=strategy)
    for name in (1, 2):
        await door.total(name, 1, start=True)
    held = await door.hold()
    poison, neighbour = door.ask(1, 13), door.ask(2, 1)
    door.model.gate.set()
    with pytest.raises(PoisonInput):
        await poison.future
    assert float((await neighbour.future).outputs["total"][0, 0]) == 2
    assert await door.total(1, 1) == 2
    await held.future


async def test_a_start_that_fails_is_no_start(door):
    door = door()
    with pytest.raises((PoisonInput, ModelFailed)):
        await door.total(1, 13, start=True)
    with pytest.raises(InvalidInput, match="must specify the START flag"):
        door.ask(1, 1)


async def test_draining_lets_open_sequences_finish_and_refuses_new_ones(door):
    door = door()
    await door.total(1, 1, start=True)
    door.executor.close(Draining())
    with pytest.raises(Draining):
        door.ask(2, 1, start=True)
    drained = asyncio.create_task(door.executor.drained(5))
    assert await door.total(1, 1) == 2
    assert not drained.done()
    assert await door.total(1, 1, end=True) == 3
    assert await asyncio.wait_for(drained, 1)


async def test_draining_does_not_wait_longer_than_it_may(door):
    door = door()
    await door.total(1, 1, start=True)
    door.executor.close(Draining())
    began = time.monotonic()
    assert await door.executor.drained(0.05)
    assert time.monotonic() - began < 1


async def test_stopping_tells_everybody(door):
    door = door()
    held = await door.hold()
    waiting = door.ask(1, 1, start=True)
    door.executor.stop()
    for ticket in (held, waiting):
        with pytest.raises(ReplicaLost):
            await ticket.future
    door.model.gate.set()


async def test_a_pass_that_hangs_takes_the_process_with_it_after_all_were_told(door):
    hung = asyncio.Event()
    door = door(hang_timeout_s=0.05, on_hang=hung.set)
    held = await door.hold()
    waiting = door.ask(1, 1, start=True)
    await asyncio.wait_for(hung.wait(), 5)
    with pytest.raises(ModelFailed):
        await held.future
    with pytest.raises(ReplicaLost):
        await waiting.future
    door.model.gate.set()
    await asyncio.sleep(0.05)


async def test_counts_are_exact(door):
    door = door()
    for value in range(4):
        await door.total(1, value, start=not value)
    found = door.executor.statistics
    counts = {found.success.count, found.queue.count, found.compute_input.count, found.compute_infer.count}
    assert counts == {4} == {found.compute_output.count}
    assert (found.inference_count, found.execution_count, found.open_sequences) == (4, 4, 1)
    assert found.batches[1].compute_infer.count == 4


class TestStateInsideTheModel:
    """Direct strategy, controls, and a model that keeps its sums by batch slot."""

    @pytest.fixture
    def inside(self):
        made = []

        async def build(**other):
            model = sequences.SummingModel()
            controls = [sequences.START, sequences.READY, sequences.NAME]
            given = settings(sequence={"controls": controls, "states": [], **other}, max_batch_size=4)
            made.append(Door(model, given))
            return made[-1], model

        yield build
        for door in made:
            door.executor.stop()

    async def test_controls_are_filled_in(self, inside):
        door, model = await inside()
        await door.total(41, 1, start=True)
        await door.total(41, 2, end=True)
        assert model.passes == [[(1, 1, 1, 41)], [(2, 0, 1, 41)]]

    async def test_a_sequence_keeps_its_row_and_others_between_are_not_ready(self, inside):
        door, model = await inside()
        for name in (41, 42, 43):
            await door.total(name, name, start=True)
        assert await door.total(43, 1) == 44
        assert [row[2:] for row in model.passes[-1]] == [(0, 41), (0, 42), (1, 43)]
        assert await door.total(41, 1) == 42
        assert len(model.passes[-1]) == 1
        assert await door.total(42, 1) == 43

    async def test_a_failed_pass_is_never_run_again_and_ends_its_sequences(self, inside):
        door, _ = await inside()
        await door.total(41, 1, start=True)
        with pytest.raises(ModelFailed):
            await door.total(41, 13)
        assert door.model.batches == [[1], [13]]
        with pytest.raises(InvalidInput, match="must specify the START flag"):
            door.ask(41, 1)

    @pytest.mark.parametrize("name", ["words", -1, 2**64])
    async def test_an_id_that_the_model_cannot_be_given_is_refused(self, inside, name):
        door, _ = await inside()
        with pytest.raises(InvalidInput, match="correlation IDs"):
            door.ask(name, 1, start=True)


@given(st.integers(0, 2**32), st.sampled_from(["direct", "oldest"]), st.integers(1, 4))
def test_many_speakers_at_once_get_the_sums_of_their_own_words(seed, strategy, largest):
    """Arbitrary interleavings, lengths and pauses; every sum must be that of its own sequence alone."""
    chance = random.Random(seed)
    model = sequences.SummingModel(4)

    async def speak(door, name):
        for _ in range(chance.randint(1, 2)):
            words = [chance.randint(14, 100) for _ in range(chance.randint(1, 5))]
            asked = []
            for at, word in enumerate(words):
                asked.append(door.ask(name, word, start=not at, end=at == len(words) - 1))
                if chance.random() < 0.5:
                    await asked[-1].future
            found = [float((await ticket.future).outputs["total"][0, 0]) for ticket in asked]
            assert found == np.cumsum(words).tolist()

    async def main():
        controls = [sequences.START, sequences.READY, sequences.NAME]
        if strategy == "oldest":
            given = settings(sequence={"strategy": strategy, "max_candidates": 3}, max_batch_size=largest)
            door = Door(_PureSum(largest), given)
        else:
            given = settings(sequence={"controls": controls, "states": []})
            door = Door(model, given)
        try:
            await asyncio.wait_for(asyncio.gather(*(speak(door, name) for name in range(1, 7))), 20)
            assert door.executor.in_flight == door.executor.statistics.open_sequences == 0
        finally:
            door.executor.stop()

    asyncio.run(main())


class _PureSum:
    """The ONNX model's arithmetic without a file, for many examples a second."""

    def __init__(self, largest):
        from inference.protocol.oip import Signature, TensorSpec

        names = ("x", "sum_in"), ("total", "sum_out")
        self.signature = Signature(
            *([TensorSpec(name, "FP32", [-1, 1]) for name in side] for side in names), max_batch_size=largest
        )
        self.states = ShapedModel(self, settings(), None).states

    def run(self, inputs):
        total = inputs["x"] + inputs["sum_in"]
        return {"total": total, "sum_out": total.copy()}

    def close(self):
        """Nothing is held."""
