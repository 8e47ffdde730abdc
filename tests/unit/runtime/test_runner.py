"""The runner lets only this house's errors out, pads to buckets, and isolates what poisons a batch."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.artifacts.manifest import RuntimeSettings
from inference.batching.whole import run_whole
from inference.errors import InvalidOutput, ModelFailed, OutOfMemory, PoisonInput, Rejected
from inference.models import LoadContext, load
from inference.protocol.oip import Signature, TensorSpec
from inference.runtime import warmup
from inference.runtime.runner import Runner
from tests.support import artifacts

MAGIC = 666.0


def echo(tmp_path, **plan):
    artifacts.echo(tmp_path, **plan)
    return Runner(load("echo", LoadContext(tmp_path, RuntimeSettings())))


def rows(*values):
    return {"input": np.array([[value] * 4 for value in values], np.float32)}


class Raising:
    """A model that raises what it is given when a row holds MAGIC."""

    signature = Signature(
        inputs=[TensorSpec("input", "FP32", [-1, 4])],
        outputs=[TensorSpec("output", "FP32", [-1, 4])],
        max_batch_size=32,
    )

    def __init__(self, error, *, always=False):
        self.error, self.always, self.calls = error, always, 0

    def run(self, inputs):
        self.calls += 1
        if self.always or (inputs["input"] == MAGIC).any():
            raise self.error
        return {"output": inputs["input"] * 2}

    def close(self):
        pass


class Panic(BaseException):
    """What pyo3 raises."""


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3), Panic("boom"), GeneratorExit()])
def test_whatever_the_model_raises_becomes_model_failed_without_its_text(error):
    with pytest.raises(ModelFailed) as caught:
        Runner(Raising(error)).run(rows(MAGIC))
    assert caught.value.message == "The model raised an error."
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 160000000000 bytes."),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        type("OutOfMemoryError", (RuntimeError,), {})("x"),
    ],
)
def test_memory_that_ran_out_is_told_apart(error):
    with pytest.raises(OutOfMemory):
        Runner(Raising(error)).run(rows(MAGIC))


def test_one_poisonous_request_of_eight_costs_no_other_its_answer(tmp_path):
    runner = echo(tmp_path, factor=3, faults=[{"value": MAGIC, "kind": "raise"}])
    answers = runner.run_isolated([rows(value) for value in (1, 2, 3, MAGIC, 5, 6, 7, 8)])
    assert [type(answer) for answer in answers].count(PoisonInput) == 1
    assert isinstance(answers[3], PoisonInput)
    assert [answer["output"][0, 0] for i, answer in enumerate(answers) if i != 3] == [3, 6, 9, 15, 18, 21, 24]


@given(st.sets(st.integers(0, 11), max_size=11), st.lists(st.integers(1, 2), min_size=12, max_size=12))
def test_exactly_the_poisonous_requests_fail_wherever_they_stand(poisonous, sizes):
    runner = Runner(Raising(RuntimeError("x")))
    requests = [rows(*[MAGIC if i in poisonous else i] * size) for i, size in enumerate(sizes)]
    answers = runner.run_isolated(requests)
    for i, answer in enumerate(answers):
        assert isinstance(answer, PoisonInput) == (i in poisonous)
        assert i in poisonous or np.array_equal(answer["output"], requests[i]["input"] * 2)


def test_bisection_is_cheap():
    model = Raising(RuntimeError("x"))
    Runner(model).run_isolated([rows(MAGIC if i == 5 else i) for i in range(32)])
    assert model.calls <= 2 * 5 + 1


def test_a_model_that_always_fails_is_blamed_itself():
    answers = Runner(Raising(RuntimeError("x"), always=True)).run_isolated([rows(1), rows(2)])
    assert [type(answer) for answer in answers] == [ModelFailed, ModelFailed]


def test_a_lone_failure_is_the_inputs_when_a_known_good_input_still_passes():
    runner = Runner(Raising(RuntimeError("x")))
    assert isinstance(runner.run_isolated([rows(MAGIC)])[0], ModelFailed)
    runner.mark_ready(rows(1))
    assert isinstance(runner.run_isolated([rows(MAGIC)])[0], PoisonInput)


@pytest.mark.parametrize("shape", [(1, 4), (3, 4), ()])
def test_a_model_that_gives_back_other_rows_never_answers_one_caller_with_anothers(shape):
    class Losing(Raising):
        def run(self, inputs):
            return {"output": np.zeros(shape, np.float32)}

    with pytest.raises(ModelFailed):
        Runner(Losing(RuntimeError("x"))).run(rows(1, 2))


def test_a_batch_too_large_for_memory_is_answered_in_halves():
    class Small(Raising):
        def run(self, inputs):
            if len(inputs["input"]) > 2:
                raise MemoryError
            return super().run(inputs)

    answers = Runner(Small(RuntimeError("x"))).run_isolated([rows(i) for i in range(8)])
    assert [answer["output"][0, 0] for answer in answers] == [2 * i for i in range(8)]


def test_requests_that_cannot_be_stacked_are_answered_one_by_one(tmp_path):
    runner = echo(tmp_path, signature={
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, -1]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, -1]}], "max_batch_size": 8,
    })  # fmt: skip
    answers = runner.run_isolated([{"input": np.ones((1, 2), np.float32)}, {"input": np.ones((1, 3), np.float32)}])
    assert [answer["output"].shape for answer in answers] == [(1, 2), (1, 3)]


def bucketed():
    tensor = {"datatype": "FP32", "shape": [-1, 4]}
    return {
        "inputs": [{"name": "input", **tensor}],
        "outputs": [{"name": "output", **tensor}],
        "max_batch_size": 8,
        "buckets": [1, 4, 8],
    }


@pytest.mark.parametrize(("size", "padded"), [(1, 0), (2, 2), (4, 0), (5, 3), (8, 0)])
def test_batches_are_padded_to_the_next_bucket_and_cut_back(tmp_path, size, padded):
    runner = echo(tmp_path, signature=bucketed(), factor=2)
    inputs = rows(*range(size))
    assert np.array_equal(runner.run(inputs)["output"], inputs["input"] * 2)
    assert runner.measures.padded_rows == padded
    assert runner.measures.rows == size


def test_rows_with_nan_are_counted(tmp_path):
    runner = echo(tmp_path, faults=[{"value": MAGIC, "kind": "nan"}])
    answer = runner.run(rows(1, MAGIC, 3))
    assert runner.measures.nonfinite == 1
    assert np.isnan(answer["output"][1]).all()
    assert np.isfinite(answer["output"][[0, 2]]).all()


def test_the_watchdog_sees_how_long_a_pass_has_been_running():
    seen = []

    class Looking(Raising):
        def run(self, inputs):
            seen.append(runner.busy_since)
            return super().run(inputs)

    runner = Runner(Looking(RuntimeError("x")))
    runner.run(rows(1))
    assert seen[0] is not None
    assert runner.busy_since is None


def test_warm_up_runs_every_bucket_and_marks_ready(tmp_path):
    runner = echo(tmp_path, signature=bucketed())
    told = []
    found = warmup.warm_up(runner, repeats=2, told=told.append)
    assert told == [1, 4, 8]
    assert list(found.latency_ms) == [1, 4, 8]
    assert found.sample["input"].shape == (1, 4)
    assert isinstance(runner.run_isolated([rows(1)])[0], dict)


def test_warm_up_runs_batch_one_and_the_largest_where_any_size_runs(tmp_path):
    assert list(warmup.warm_up(echo(tmp_path)).latency_ms) == [1, 32]


def test_a_model_that_fails_in_warm_up_is_rejected_with_its_cause(tmp_path):
    with pytest.raises(Rejected, match="asked to raise") as caught:
        warmup.warm_up(echo(tmp_path, faults=[{"value": 1, "kind": "raise"}]))
    assert caught.value.check == "warm-up"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"other": np.zeros((2, 4), np.float32)}, "answers"),
        ({"output": np.zeros((2, 4), np.float64)}, "float64"),
        ({"output": np.zeros((2, 5), np.float32)}, "shape"),
        ({"output": np.zeros((3, 4), np.float32)}, "shape"),
        ({"output": np.zeros(2, np.float32)}, "shape"),
    ],
)
def test_outputs_other_than_the_signature_says_are_rejected(outputs, said):
    with pytest.raises(Rejected, match=said):
        warmup.verify(Raising.signature, outputs, 2)


def test_a_free_dimension_is_tried_until_the_model_takes_it():
    class Picky(Raising):
        signature = Signature(
            inputs=[TensorSpec("input", "FP32", [-1, -1])],
            outputs=[TensorSpec("output", "FP32", [-1, -1])],
            max_batch_size=2,
        )

        def run(self, inputs):
            if inputs["input"].shape[1] != 64:
                raise ValueError("64 or nothing")
            return super().run(inputs)

    assert warmup.warm_up(Runner(Picky(RuntimeError("x")))).sample["input"].shape == (1, 64)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "INT64", "BOOL", "BYTES", "UINT8"])
def test_synthetic_inputs_fit_their_signature(datatype):
    spec = TensorSpec("x", datatype, [-1, 3])
    signature = Signature(inputs=[spec], outputs=[spec], max_batch_size=4)
    array = warmup.synthetic(signature, 4)["x"]
    warmup.verify(signature, {"x": array}, 4)


def test_a_shareable_model_is_shared_by_its_twins_and_another_is_loaded_for_each(tmp_path):
    runner, loads = echo(tmp_path), []

    def load_again():
        loads.append(Raising(RuntimeError()))
        return loads[-1]

    runner.grow(3, load_again, lambda twin: None)
    assert [twin.model for twin in runner.twins] == [runner.model] * 2
    assert loads == []
    own = Runner(Raising(RuntimeError()))
    warmed = []
    own.grow(3, load_again, warmed.append)
    assert [twin.model for twin in own.twins] == loads
    assert warmed == own.twins


def test_time_inside_the_model_never_passes_faster_than_the_clock():
    runner = Runner(Raising(RuntimeError()))
    runner.grow(2, lambda: Raising(RuntimeError()), lambda twin: None)
    for one in (runner, *runner.twins):
        one.measures.busy_s = 2.0
    assert runner.busy_s == 2.0


class NaN:
    """Gives NaN in the rows that hold MAGIC."""

    signature = Raising.signature

    def run(self, inputs):
        return {"output": np.where(inputs["input"] == MAGIC, np.float32("nan"), inputs["input"] * 2)}

    def close(self):
        pass


def test_an_answer_that_is_not_finite_is_given_out_or_refused_alone():
    requests = [rows(1), rows(2, MAGIC), rows(3)]
    passed = Runner(NaN()).run_isolated(requests)
    assert np.isnan(passed[1]["output"][1]).all()
    strict = Runner(NaN(), rejects_nonfinite=True)
    found = strict.run_isolated(requests)
    assert isinstance(found[1], InvalidOutput)
    assert [found[0]["output"][0, 0], found[2]["output"][0, 0]] == [2, 6]
    assert isinstance(strict.run_isolated([rows(MAGIC)])[0], InvalidOutput)
    assert isinstance(run_whole(strict, [rows(1), rows(MAGIC)]).results[1], InvalidOutput)
    strict.grow(2, NaN, lambda runner: None)
    assert strict.twins[0].rejects_nonfinite


def test_the_requests_of_a_pass_that_are_not_finite_are_told_from_the_others():
    requests = [rows(1), rows(2, MAGIC), rows(3)]
    for run in (Runner(NaN()).run_requests, partial(run_whole, Runner(NaN()))):
        ran = run([rows(1), rows(MAGIC), rows(3)])
        assert [ran.doubts(one) for one in ran.results] == [False, True, False]
        assert run([rows(1), rows(3)]).doubts is None
    careless = Runner(NaN(), minds_nonfinite=False)
    assert careless.run_requests(requests).doubts is None
    assert careless.measures.nonfinite == 0
    careless.grow(2, NaN, lambda runner: None)
    assert not careless.twins[0].minds_nonfinite
