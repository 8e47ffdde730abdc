"""The way through a graph: every step once and after its inputs, nothing kept for long, nothing left behind."""

from __future__ import annotations

import asyncio
import random
from array import array
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import Cancelled, DeadlineExceeded, InvalidInput, ModelFailed, NotReady, Overloaded
from inference.gateway.admission import Queue
from inference.gateway.calls import Call
from inference.gateway.deadlines import Deadlines, Ticket
from inference.gateway.pipelines import Plan, Step, Walk, named, run
from inference.protocol.messages import Answer, TensorHeader
from inference.protocol.oip import Signature
from inference.protocol.routes import StepRoute
from tests.support.pipelines import chain, random_graph


def plan_of(pipeline, **limits) -> Plan:
    steps = [
        Step(
            StepRoute(
                one.name,
                one.model,
                1,
                Signature([], []),
                one.input_map,
                one.output_map,
                max_inflight=limits.get(one.name, 0),
            ),
            [],
            Queue(),
        )
        for one in pipeline.steps
    ]
    return Plan(steps, [spec.name for spec in pipeline.outputs])


def floats(*values) -> bytes:
    return array("f", values).tobytes()


def call_of(pipeline, outputs=()) -> Call:
    data = [floats(number + 1) for number in range(len(pipeline.inputs))]
    headers = [TensorHeader(spec.name, "FP32", [1, 1], 4) for spec in pipeline.inputs]
    return Call("r1", headers, data, list(outputs), parameters={"tone": 3})


def ticket_of(seconds=30.0) -> Ticket:
    return Ticket(0.0, seconds, None)


@dataclass
class Fake:
    """Steps that answer each output with the sum of the inputs plus its number, after a random number of turns."""

    seed: int = 0
    begun: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    calls: dict[str, Call] = field(default_factory=dict)
    fails: dict[str, Exception] = field(default_factory=dict)
    stuck: frozenset[str] = frozenset()

    async def __call__(self, step: Step, call: Call, ticket: Ticket):
        name = step.route.name
        chance = random.Random(f"{self.seed} {name}")
        self.begun.append(name)
        self.calls[name] = call
        try:
            for _ in range(chance.randint(0, 4)):
                await asyncio.sleep(0)
            if name in self.stuck:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        if name in self.fails:
            raise self.fails[name]
        self.ended.append(name)
        total = sum(memoryview(data).cast("f")[0] for data in call.body)
        headers = [TensorHeader(inner, "FP32", [1, 1], 4) for inner in call.outputs]
        body = b"".join(floats(total + number) for number in range(len(headers)))
        return Answer(1, headers, 2, 10, 100), memoryview(body)


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


# -- the runner --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 15), st.data())
def test_a_run_gives_what_the_steps_one_by_one_give(seed, steps, data):
    pipeline = random_graph(seed, steps)
    plan = plan_of(pipeline)
    wanted = data.draw(st.lists(st.sampled_from(plan.outputs), unique=True))
    fake = Fake(seed)

    async def scenario():
        return await run(plan, call_of(pipeline, wanted), ticket_of(), fake)

    answer, body = asyncio.run(scenario())
    needed = {plan.steps[at].route.name for at in plan.leading_to(wanted)}
    assert sorted(fake.begun) == sorted(fake.ended) == sorted(needed)
    values = reference(pipeline, needed, {name: call.outputs for name, call in fake.calls.items()})
    names = [name for name in plan.outputs if not wanted or name in wanted]
    assert [header.name for header in answer.tensors] == names
    assert body.cast("B").tobytes() == b"".join(floats(values[name]) for name in names)
    assert (answer.batch_size, answer.queue_ns, answer.compute_ns) == (2, 10 * len(needed), 100 * len(needed))
    assert all(step.queue.in_flight == 0 for step in plan.steps)


@given(st.integers(0, 10**6), st.integers(1, 12), st.data())
def test_a_failing_step_ends_the_request_with_its_name_and_leaves_nothing(seed, steps, data):
    pipeline = random_graph(seed, steps)
    plan = plan_of(pipeline)
    victim = data.draw(st.sampled_from(pipeline.steps)).name
    fake = Fake(seed, fails={victim: ModelFailed("it broke")})

    async def scenario():
        with pytest.raises(ModelFailed, match=f"^step '{victim}': it broke$"):
            await run(plan, call_of(pipeline), ticket_of(), fake)
        return await settled()

    assert asyncio.run(scenario()) == 0
    assert sorted(fake.begun) == sorted([*fake.ended, *fake.cancelled, victim])
    assert all(step.queue.in_flight == 0 for step in plan.steps)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(0, 12), st.sampled_from([Cancelled, DeadlineExceeded]))
def test_whoever_leaves_takes_every_step_along(seed, steps, turns, why):
    pipeline = random_graph(seed, steps)
    plan = plan_of(pipeline)
    fake = Fake(seed, stuck=frozenset({pipeline.steps[-1].name}))

    async def scenario():
        ticket = ticket_of()
        asked = asyncio.ensure_future(run(plan, call_of(pipeline), ticket, fake))
        for _ in range(turns):
            await asyncio.sleep(0)
        ticket.fail(why())
        with pytest.raises(why):
            await asked
        return await settled()

    assert asyncio.run(scenario()) == 0
    assert sorted(fake.begun) == sorted([*fake.ended, *fake.cancelled])
    assert all(step.queue.in_flight == 0 for step in plan.steps)


async def settled() -> int:
    """The tasks besides this one, after what was cancelled has had its turn."""
    for _ in range(3):
        await asyncio.sleep(0)
    return len(asyncio.all_tasks()) - 1


async def test_a_task_that_is_cancelled_takes_every_step_along():
    pipeline = chain("a", "b")
    plan, fake = plan_of(pipeline), Fake(stuck=frozenset({"b"}))
    asked = asyncio.ensure_future(run(plan, call_of(pipeline), ticket_of(), fake))
    while "b" not in fake.begun:  # noqa: ASYNC110
        await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert await settled() == 0
    assert fake.cancelled == ["b"]


async def test_a_deadline_that_passes_ends_it():
    pipeline = chain("a", "b")
    deadlines = Deadlines()
    ticket = deadlines.open(0.03)
    fake = Fake(stuck=frozenset({"b"}))
    with pytest.raises(DeadlineExceeded):
        await run(plan_of(pipeline), call_of(pipeline), ticket, fake)
    deadlines.close(ticket)
    await settled()
    assert fake.cancelled == ["b"]


async def test_a_request_that_has_ended_starts_nothing():
    pipeline, ticket, fake = chain("a"), ticket_of(), Fake()
    ticket.fail(Cancelled())
    with pytest.raises(Cancelled):
        await run(plan_of(pipeline), call_of(pipeline), ticket, fake)
    assert fake.begun == []


async def test_a_full_step_is_the_requests_overloaded_at_once():
    pipeline = chain("a", "b")
    plan, fake = plan_of(pipeline, b=1), Fake(stuck=frozenset({"b"}))
    first = asyncio.ensure_future(run(plan, call_of(pipeline), ticket_of(), fake))
    while "b" not in fake.begun:  # noqa: ASYNC110
        await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="step 'b': Exceeds maximum queue size") as caught:
        await run(plan, call_of(pipeline), ticket_of(), fake)
    assert caught.value.retry_after_s
    assert fake.begun.count("b") == 1
    first.cancel()
    await settled()
    fake.stuck = frozenset()
    await run(plan, call_of(pipeline), ticket_of(), fake)


async def test_tensors_are_passed_on_as_the_bytes_they_came_as():
    pipeline = chain("a", "b")
    reply = memoryview(floats(7.0))
    seen: list[Call] = []

    async def echo(step: Step, call: Call, ticket: Ticket):
        seen.append(call)
        return Answer(1, [TensorHeader("y", "FP32", [1, 1], 4)], 1, 0, 0), reply

    call = call_of(pipeline)
    _, body = await run(plan_of(pipeline), call, ticket_of(), echo)
    assert seen[0].body[0] is call.body[0]
    assert seen[1].body[0].obj is reply.obj
    assert body.obj is reply.obj
    assert [(one.tensors[0].name, one.outputs, one.parameters) for one in seen] == [("x", ["y"], {"tone": 3})] * 2


@pytest.mark.parametrize(
    "headers", [[], [("z", 4)], [("y", 8)], [("y", -4)]], ids=["none", "other", "long", "negative"]
)
async def test_an_answer_that_contradicts_itself_is_the_servers_fault(headers):
    async def wrong(step: Step, call: Call, ticket: Ticket):
        told = [TensorHeader(name, "FP32", [1, 1], size) for name, size in headers]
        return Answer(1, told, 1, 0, 0), memoryview(b"1234")

    with pytest.raises(NotReady, match="step 'a'"):
        await run(plan_of(chain("a")), call_of(chain("a")), ticket_of(), wrong)


def test_the_name_of_the_step_stands_before_the_words():
    found = named(InvalidInput("too long", retry_after_s=None), "embed")
    assert (type(found), found.args) == (InvalidInput, ("step 'embed': too long",))
    strange = ValueError("who knows")
    assert named(strange, "embed") is strange
