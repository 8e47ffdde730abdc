"""The way through a graph: every step once and after its inputs, nothing kept for long, nothing left behind."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import Cancelled, DeadlineExceeded, InvalidInput, ModelFailed, NotReady, Overloaded, SerinusError
from inference.gateway.calls import Call
from inference.gateway.flights import Flight
from inference.gateway.pipelines import Plan, Run, Step, Walk, named
from inference.protocol.messages import Answer, SequenceControl, TensorHeader
from inference.protocol.oip import Signature
from inference.protocol.routes import StepRoute
from tests.support.pipelines import chain, random_graph


def plan_of(pipeline) -> Plan:
    steps = [
        Step(
            StepRoute(one.name, one.model, 1, Signature([], []), one.input_map, one.output_map),
            SimpleNamespace(name=one.name),
        )
        for one in pipeline.steps
    ]
    return Plan(steps, [spec.name for spec in pipeline.outputs])


def floats(*values) -> bytes:
    return array("f", values).tobytes()


def call_of(pipeline, outputs=()) -> Call:
    data = [floats(number + 1) for number in range(len(pipeline.inputs))]
    headers = [TensorHeader(spec.name, "FP32", [1, 1], 4) for spec in pipeline.inputs]
    control = SequenceControl(7)
    return Call("r1", headers, data, list(outputs), parameters={"tone": 3}, traceparent="00-1", sequence=control)


class Outer(Flight):
    """A request as a door has it."""

    def __init__(self, replies) -> None:
        super().__init__()
        self.replies = replies

    def answered(self, answer, body) -> None:
        self.replies.append((answer, body))

    def failed(self, error) -> None:
        raise AssertionError("the plane tells it, and this one does not")


@dataclass
class Plane:
    """A data plane whose steps answer when they are told to: each output with the sum of the inputs plus its number."""

    full: frozenset[str] = frozenset()
    under_way: dict[str, Flight] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    abandoned: list[str] = field(default_factory=list)
    calls: dict[str, Call] = field(default_factory=dict)
    errors: list[SerinusError] = field(default_factory=list)
    replies: list[tuple[Answer, memoryview]] = field(default_factory=list)

    def run(self, pipeline, outputs=()) -> Flight:
        outer = Outer(self.replies)
        outer.call = call_of(pipeline, outputs)
        outer.link = run = Run(self, outer, plan_of(pipeline))
        run.begin()
        return outer

    def start_step(self, flight, outer, step, call) -> None:
        if step.name in self.full:
            raise Overloaded(retry_after_s=1.0)
        self.begun.append(step.name)
        self.calls[step.name] = call
        self.under_way[step.name] = flight

    def answered(self, flight, answer) -> None:
        self.done.append(self._gone(flight))

    def abandon(self, flight) -> None:
        self.abandoned.append(self._gone(flight))

    def end(self, flight, error) -> None:
        if not flight.has_ended:
            flight.has_ended = True
            self.errors.append(error)
            flight.link.forget(flight)

    def _gone(self, flight) -> str:
        name = next(name for name, held in self.under_way.items() if held is flight)
        del self.under_way[name]
        return name

    def answer(self, name: str) -> None:
        flight, call = self.under_way[name], self.calls[name]
        total = sum(memoryview(data).cast("f")[0] for data in call.body)
        headers = [TensorHeader(inner, "FP32", [1, 1], 4) for inner in call.outputs]
        body = b"".join(floats(total + number) for number in range(len(headers)))
        flight.answered(Answer(1, headers, 2, 10, 100), memoryview(body))

    def fail(self, name: str, error: SerinusError) -> None:
        flight = self.under_way.pop(name)
        flight.failed(error)


def reference(pipeline, needed, asked):
    """What the graph gives, computed one step after the other."""
    values = {spec.name: float(number + 1) for number, spec in enumerate(pipeline.inputs)}
    rest = [one for one in pipeline.steps if one.name in needed]
    while rest:
        one = next(one for one in rest if set(one.input_map.values()) <= values.keys())
        total = sum(values[name] for name in one.input_map.values())
        outers = [one.output_map[inner] for inner in asked[one.name]]
        values |= {outer: total + number for number, outer in enumerate(outers)}
        rest.remove(one)
    return values


# -- pure --------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**9), st.integers(1, 20), st.data())
def test_every_needed_step_runs_once_after_its_inputs_and_nothing_else_is_kept(seed, steps, data):
    pipeline = random_graph(seed, steps)
    plan = plan_of(pipeline)
    wanted = data.draw(st.lists(st.sampled_from(plan.outputs), unique=True))
    walk = Walk(plan, wanted)
    held = {spec.name for spec in pipeline.inputs if walk.is_needed(spec.name)}
    running = walk.arrived([spec.name for spec in pipeline.inputs])
    seen: list[int] = []
    while running:
        at = running.pop(data.draw(st.integers(0, len(running) - 1)))
        seen.append(at)
        route = plan.steps[at].route
        assert set(route.input_map.values()) <= held
        made = {route.output_map[inner] for inner in walk.asked(at)}
        for name in walk.finished(at):
            held.remove(name)
        held |= made
        running += walk.arrived(made)
    assert len(seen) == len(set(seen))
    assert set(seen) == plan.leading_to(wanted)
    assert not walk.left
    assert held == set(wanted or plan.outputs)
    assert walk.outputs == tuple(name for name in plan.outputs if not wanted or name in wanted)


def test_only_what_leads_to_a_wanted_output_runs():
    pipeline = random_graph(4, 12)
    plan = plan_of(pipeline)
    assert plan.leading_to([]) == frozenset(range(12))
    fewest = min((plan.leading_to([name]) for name in plan.outputs), key=len)
    assert len(fewest) < 12


# -- one request -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 15), st.data())
def test_a_run_gives_what_the_steps_one_by_one_give(seed, steps, data):
    """In whatever order the steps answer."""
    pipeline = random_graph(seed, steps)
    plan, plane = plan_of(pipeline), Plane()
    wanted = data.draw(st.lists(st.sampled_from(plan.outputs), unique=True))
    outer = plane.run(pipeline, wanted)
    while plane.under_way:
        assert not plane.replies
        plane.answer(data.draw(st.sampled_from(sorted(plane.under_way))))
    needed = {plan.steps[at].route.name for at in plan.leading_to(wanted)}
    assert sorted(plane.begun) == sorted(plane.done) == sorted(needed)
    ((answer, body),) = plane.replies
    values = reference(pipeline, needed, {name: call.outputs for name, call in plane.calls.items()})
    names = [name for name in plan.outputs if not wanted or name in wanted]
    assert [header.name for header in answer.tensors] == names
    assert body.tobytes() == b"".join(floats(values[name]) for name in names)
    assert (answer.batch_size, answer.queue_ns, answer.compute_ns) == (2, 10 * len(needed), 100 * len(needed))
    assert outer.has_ended
    assert not plane.abandoned
    assert not plane.errors


@given(st.integers(0, 10**6), st.integers(1, 12), st.data())
def test_a_failing_step_ends_the_request_with_its_name_and_leaves_nothing(seed, steps, data):
    pipeline = random_graph(seed, steps)
    plane = Plane()
    victim = data.draw(st.sampled_from(pipeline.steps)).name
    plane.run(pipeline)
    while victim not in plane.under_way:
        plane.answer(data.draw(st.sampled_from(sorted(plane.under_way))))
    plane.fail(victim, ModelFailed("it broke"))
    assert [(type(error), error.message) for error in plane.errors] == [(ModelFailed, f"step '{victim}': it broke")]
    assert not plane.under_way
    assert not plane.replies
    assert sorted(plane.begun) == sorted([*plane.done, *plane.abandoned, victim])


@given(st.integers(0, 10**6), st.integers(1, 12), st.data())
def test_whoever_leaves_takes_every_step_along(seed, steps, data):
    """A client that left, a deadline: whatever ends the flight has the run forget it."""
    pipeline = random_graph(seed, steps)
    plane = Plane()
    outer = plane.run(pipeline)
    for _ in range(data.draw(st.integers(0, steps - 1))):
        plane.answer(data.draw(st.sampled_from(sorted(plane.under_way))))
    late = list(plane.under_way.values())
    plane.end(outer, Cancelled())
    assert not plane.under_way
    assert sorted(plane.begun) == sorted([*plane.done, *plane.abandoned])
    begun = list(plane.begun)
    for flight in late:
        flight.failed(ModelFailed())
    assert (plane.begun, plane.replies, len(plane.errors)) == (begun, [], 1)


def test_a_full_step_is_the_requests_overloaded_at_once():
    plane = Plane(full=frozenset({"a"}))
    with pytest.raises(Overloaded, match="step 'a': Exceeds maximum queue size") as caught:
        plane.run(chain("a", "b"))
    assert caught.value.retry_after_s == 1.0
    plane = Plane(full=frozenset({"b"}))
    plane.run(chain("a", "b"))
    plane.answer("a")
    assert [error.message for error in plane.errors] == ["step 'b': Exceeds maximum queue size"]
    assert not plane.under_way


def test_a_step_that_cannot_start_takes_those_along_that_could():
    pipeline = random_graph(11, 12)
    plan = plan_of(pipeline)
    inputs = {spec.name for spec in pipeline.inputs}
    first = [one.name for one in pipeline.steps if set(one.input_map.values()) <= inputs]
    assert len(first) > 1, "the graph was chosen to have two steps that start at once"
    order = Walk(plan, ()).arrived([spec.name for spec in pipeline.inputs])
    plane = Plane(full=frozenset({plan.steps[order[-1]].route.name}))
    with pytest.raises(Overloaded):
        plane.run(pipeline)
    assert len(plane.begun) == len(order) - 1
    assert plane.abandoned == plane.begun


def test_tensors_are_passed_on_as_the_bytes_they_came_as():
    plane = Plane()
    outer = plane.run(chain("a", "b"))
    reply = memoryview(floats(7.0))
    assert plane.calls["a"].body[0] is outer.call.body[0]
    for name in ("a", "b"):
        flight = plane.under_way[name]
        flight.answered(Answer(1, [TensorHeader("y", "FP32", [1, 1], 4)], 1, 0, 0), reply)
    assert plane.calls["b"].body[0].obj is reply.obj
    assert plane.replies[0][1].obj is reply.obj
    for name in ("a", "b"):
        call = plane.calls[name]
        assert (call.tensors[0].name, call.outputs, call.parameters) == ("x", ["y"], {"tone": 3})
        assert (call.traceparent, call.sequence, call.id) == ("00-1", None, outer.call.id)


@pytest.mark.parametrize(
    "headers", [[], [("z", 4)], [("y", 8)], [("y", -4)]], ids=["none", "other", "long", "negative"]
)
def test_an_answer_that_contradicts_itself_is_the_servers_fault(headers):
    plane = Plane()
    plane.run(chain("a"))
    flight = plane.under_way["a"]
    told = [TensorHeader(name, "FP32", [1, 1], size) for name, size in headers]
    flight.answered(Answer(1, told, 1, 0, 0), memoryview(b"1234"))
    (error,) = plane.errors
    assert (type(error), error.message) == (NotReady, "step 'a': the replica sent an unreadable answer")


def test_a_step_with_more_answers_than_one_is_refused():
    plane = Plane()
    plane.run(chain("a"))
    flight = plane.under_way["a"]
    flight.answered(Answer(1, [], 1, 0, 0, final=False), memoryview(b""))
    assert [error.message for error in plane.errors] == ["step 'a': it gave more than one answer"]
    assert plane.abandoned == ["a"]


def test_the_name_of_the_step_stands_before_the_words():
    found = named(InvalidInput("too long"), "embed")
    assert (type(found), found.args) == (InvalidInput, ("step 'embed': too long",))
    late = DeadlineExceeded()
    assert named(late, "embed") is late
