"""What a Python model's own requests become: whose they are, how long they may take, what goes in and what comes back."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from inference.errors import BY_CODE, ReplicaLost, SerinusError, Unsupported
from inference.models.asked import About
from inference.models.calling import Question, Told
from inference.models.triton_python import backend_utils as pb
from inference.models.triton_python import bls
from inference.models.triton_python.executions import Execution, call, current, entered, under_way
from inference.protocol.messages import SequenceControl


class Call:
    """What was asked, and by which way it may be told."""

    def __init__(self, question: Question, parents: list[int], timeout_s: float, told: Told) -> None:
        self.question, self.parents, self.timeout_s, self.told = question, parents, timeout_s, told
        self.read, self.has_left = 0, False

    def took(self) -> None:
        self.read += 1

    def leave(self) -> None:
        self.has_left = True


class Way:
    """A connection that keeps its calls, and answers each at once with what it is given."""

    def __init__(self, *answers: Any) -> None:
        self.calls: list[Call] = []
        self.answers = answers

    def call(self, question: Question, parents: Sequence[int], timeout_s: float, told: Told) -> Call:
        self.calls.append(Call(question, list(parents), timeout_s, told))
        for answer in self.answers:
            told(answer)
        return self.calls[-1]


class Got:
    def __init__(self, *values: float, is_final: bool = True) -> None:
        self.is_final, self.parameters = is_final, {"by": "x"}
        self._values = values

    def outputs(self) -> list[tuple[str, str, Any]]:
        return [("y", "FP32", np.array([value], np.float32)) for value in self._values]


def about(way: Way | None, number: int, deadline_s: float = 10, **more: Any) -> About:
    return About(deadline=time.monotonic() + deadline_s, calls=way, number=number, **more)


def request(**more: Any) -> pb.InferenceRequest:
    return pb.InferenceRequest(model_name="x", **more)


def executing(*requests: About, patience_s: float = 30.0, until: float = float("inf")) -> Execution:
    return Execution(requests, patience_s, until)


def test_a_call_has_the_time_of_those_who_are_executed_and_no_more() -> None:
    way = Way()
    for deadline_s, patience_s, until_s, left_s in ((10, 30, 50, 10), (10, 3, 50, 3), (10, 30, 2, 2)):
        execution = executing(about(way, 1, deadline_s), about(way, 2, 1), patience_s=patience_s,
                              until=time.monotonic() + until_s)  # fmt: skip
        call(execution, Question("x", []), print)
        assert way.calls[-1].timeout_s == pytest.approx(left_s, abs=0.5)
        assert way.calls[-1].parents == [1, 2]


def test_it_is_made_for_those_who_wait_still_and_goes_by_one_connection() -> None:
    way, other = Way(), Way()
    execution = executing(about(way, 1, has_left=lambda: True), about(way, 2, 5), about(other, 3, 9), about(other, 4))
    call(execution, Question("x", []), print)
    assert not way.calls
    assert other.calls[0].parents == [4, 3]
    mine = SequenceControl(7)
    call(executing(about(way, 5, 1, sequence=mine), about(other, 6)), Question("x", [], sequence=mine), print)
    assert way.calls[0].parents == [5]


def test_a_gateway_that_passes_nothing_on_is_told_apart_from_nobody_who_asks() -> None:
    with pytest.raises(Unsupported, match="no further model"):
        call(executing(about(None, 3)), Question("x", []), print)


def test_a_thread_with_the_context_has_its_own_execution_and_one_without_all_of_them() -> None:
    one, two = executing(about(Way(), 1)), executing(about(Way(), 2))
    found: list[Any] = []
    with under_way(one), under_way(two), entered(two):
        assert current() is two
        context = contextvars.copy_context()
        for run in (lambda: context.run(lambda: found.append(current())), lambda: found.append(current())):
            worker = threading.Thread(target=run)
            worker.start()
            worker.join()
    assert found[0] is two
    assert [one.number for one in found[1].requests] == [1, 2]
    assert current() is None
    assert context.run(current) is None  # it is over for whoever knew it


def test_outside_of_execute_nothing_is_called() -> None:
    with pytest.raises(pb.TritonModelException, match="BLS is supported only during the 'execute' function"):
        request().exec()


def test_what_is_asked_and_what_comes_back() -> None:
    way = Way(Got(3.0))
    tensors = [pb.Tensor("a", np.array([1], np.int8)), pb.Tensor("s", np.array(["é", b"x"], dtype=object))]
    asked = request(inputs=tensors, requested_output_names=["y"], model_version=2, request_id="r", correlation_id="c",
                    flags=3, timeout=5, parameters={"p": 1}, trace=pb.InferenceTrace("00-t"))  # fmt: skip
    execution = executing(about(way, 1))
    with under_way(execution), entered(execution):
        response = asked.exec()
    assert not response.has_error()
    assert response.output_tensors()[0].as_numpy().tolist() == [3.0]
    assert response.parameters() == '{"by": "x"}'
    found = way.calls[0].question
    assert [(name, kind) for name, kind, _ in found.inputs] == [("a", "INT8"), ("s", "BYTES")]
    assert (found.model, found.version, found.outputs, found.request_id) == ("x", 2, ["y"], "r")
    assert (found.sequence, found.timeout_us, found.parameters) == (SequenceControl("c", True, True), 5, {"p": 1})
    assert (found.traceparent, found.many) == ("00-t", False)


@pytest.mark.parametrize("version", [0, -2, "1"])
def test_a_version_is_a_number_or_minus_one(version: Any) -> None:
    with pytest.raises(pb.TritonModelException, match="model_version"):
        bls.question(request(model_version=version), many=False)
    assert bls.question(request(), many=False).version == 0


def test_a_dtype_that_no_model_takes_is_told() -> None:
    with pytest.raises(pb.TritonModelException, match="complex64"):
        bls.question(request(inputs=[pb.Tensor("a", np.zeros(1, np.complex64))]), many=False)


def test_an_iterator_hides_the_empty_end_counts_what_was_read_and_ends_with_an_error() -> None:
    for last, ends in ((Got(), False), (ReplicaLost(), True)):
        way = Way(Got(1.0, is_final=False), Got(2.0, is_final=False), last)
        execution = executing(about(way, 1))
        with under_way(execution), entered(execution):
            found = list(request().exec(decoupled=True))
        assert [one.output_tensors()[0].as_numpy()[0] for one in found if not one.has_error()] == [1.0, 2.0]
        assert [one.error().code() for one in found if one.has_error()] == [4] * ends
        assert (way.calls[0].read, way.calls[0].has_left) == (2, False)


def test_an_iterator_that_is_dropped_leaves_the_call() -> None:
    way = Way(Got(1.0, is_final=False))
    execution = executing(about(way, 1))
    with under_way(execution), entered(execution):
        answers = request().exec(decoupled=True)
        next(answers)
        del answers
    assert way.calls[0].has_left


async def test_awaited_calls_are_under_way_at_once_and_leave_with_their_task() -> None:
    way = Way()
    execution = executing(about(way, 1))
    with under_way(execution), entered(execution):
        first, second = request().async_exec(), request().async_exec()
    assert len(way.calls) == 2
    second.cancel()
    threading.Thread(target=way.calls[0].told, args=(Got(5.0),)).start()
    assert (await asyncio.wait_for(first, 5)).output_tensors()[0].as_numpy().tolist() == [5.0]
    assert [one.has_left for one in way.calls] == [False, True]
    way.calls[1].told(Got(6.0))  # too late, and harmless
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", sorted(BY_CODE.values(), key=lambda one: one.code), ids=lambda one: one.code)
def test_every_error_has_one_of_tritons_codes(kind: type[SerinusError]) -> None:
    error = bls.code_of(kind("why"))
    expected = {
        "not_found": pb.TritonError.NOT_FOUND, "unsupported": pb.TritonError.UNSUPPORTED,
        "cancelled": pb.TritonError.CANCELLED, "overloaded": pb.TritonError.UNAVAILABLE,
        "replica_lost": pb.TritonError.UNAVAILABLE, "deadline_exceeded": pb.TritonError.UNAVAILABLE,
        "not_ready": pb.TritonError.UNAVAILABLE, "draining": pb.TritonError.UNAVAILABLE,
        "model_failed": pb.TritonError.INTERNAL, "invalid_input": pb.TritonError.INVALID_ARG,
    }  # fmt: skip
    assert error == expected.get(kind.code, error)
    assert error in range(8)
