"""A request's way through a graph of versions: which step may run, what is passed on, what may be forgotten.

`Plan` and `Walk` are pure; `run` is their asyncio shell. A step runs as soon as its inputs are there, and steps that do
not wait for each other run side by side. Tensors are passed on as the bytes that they came as; only what leads to a
wanted output runs. The first failure ends the request, and the steps under way are cancelled.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from inference.errors import NotReady, Overloaded, SerinusError
from inference.gateway.admission import Queue
from inference.gateway.calls import Call
from inference.gateway.connections import Link, Reply
from inference.gateway.deadlines import Ticket
from inference.protocol.messages import Answer, TensorHeader
from inference.protocol.routes import StepRoute

NO_BOUND = 1 << 30
Bytes = bytes | memoryview
Tensor = tuple[TensorHeader, Bytes]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step with the ways to its version's replicas. `queue` counts what is under way; it outlives routing tables."""

    route: StepRoute
    links: list[Link]
    queue: Queue


class Plan:
    """A graph, indexed once for all its requests. `outputs`: names of the graph's outputs, in the signature's order."""

    __slots__ = ("_everything", "makers", "outputs", "readers", "steps")

    def __init__(self, steps: Sequence[Step], outputs: Iterable[str]) -> None:
        self.steps = tuple(steps)
        self.outputs = tuple(outputs)
        self.makers = {name: at for at, step in enumerate(self.steps) for name in step.route.output_map.values()}
        self.readers: dict[str, set[int]] = {}
        for at, step in enumerate(self.steps):
            for name in step.route.input_map.values():
                self.readers.setdefault(name, set()).add(at)
        self._everything = self._leading_to(self.outputs)

    @property
    def is_routed(self) -> bool:
        """Whether every step has a replica, ready or not."""
        return all(step.links for step in self.steps)

    @property
    def is_ready(self) -> bool:
        return all(any(link.ready for link in step.links) for step in self.steps)

    def leading_to(self, outputs: Sequence[str]) -> frozenset[int]:
        """The steps without which these outputs cannot be made; of all outputs when none is named."""
        return self._leading_to(outputs) if outputs else self._everything

    def _leading_to(self, outputs: Iterable[str]) -> frozenset[int]:
        found: set[int] = set()
        rest = list(outputs)
        while rest:
            at = self.makers.get(rest.pop())
            if at is not None and at not in found:
                found.add(at)
                rest += self.steps[at].route.input_map.values()
        return frozenset(found)


class Walk:
    """Where one request stands in its graph. Each step is told once by `ready`, after all of its inputs are there."""

    def __init__(self, plan: Plan, outputs: Sequence[str]) -> None:
        self.plan = plan
        self.outputs = tuple(name for name in plan.outputs if not outputs or name in outputs)
        self._steps = plan.leading_to(self.outputs)
        self._waits = {at: len(set(plan.steps[at].route.input_map.values())) for at in self._steps}
        self._readers = {name: plan.readers[name] & self._steps for name in plan.readers}
        self._uses = {name: len(readers) for name, readers in self._readers.items()}
        self._kept = frozenset(self.outputs)
        self.left = len(self._steps)

    def arrived(self, tensors: Iterable[str]) -> list[int]:
        """The steps that may run now that these tensors are there too, each told once."""
        ready = []
        for name in tensors:
            for at in self._readers.get(name, ()):
                self._waits[at] -= 1
                if not self._waits[at]:
                    ready.append(at)
        return ready

    def finished(self, at: int) -> list[str]:
        """The tensors that nobody needs any more now that this step has its answer."""
        self.left -= 1
        gone = []
        for name in set(self.plan.steps[at].route.input_map.values()):
            self._uses[name] -= 1
            if not self._uses[name] and name not in self._kept:
                gone.append(name)
        return gone

    def is_needed(self, tensor: str) -> bool:
        return tensor in self._kept or bool(self._uses.get(tensor))

    def asked(self, at: int) -> list[str]:
        """The step's own names of the outputs that somebody waits for."""
        return [inner for inner, outer in self.plan.steps[at].route.output_map.items() if self.is_needed(outer)]


RunStep = Callable[[Step, Call, Ticket], Awaitable[Reply]]


async def run(plan: Plan, call: Call, ticket: Ticket, run_step: RunStep) -> Reply:
    """Runs a call that fits the graph's signature: all its rows travel together, so its batch is not looked at again.

    `run_step` answers one step's call; it is cancelled when nobody waits for that any more. Raises what the ticket
    ends with, or the first step's error with the step's name in it.
    """
    return await _Run(plan, call, ticket, run_step).ended_with()


class _Run:
    def __init__(self, plan: Plan, call: Call, ticket: Ticket, run_step: RunStep) -> None:
        self._walk = Walk(plan, call.outputs)
        self._call = call
        self._ticket = ticket
        self._run_step = run_step
        self._tensors: dict[str, Tensor] = {}
        self._answers: list[Answer] = []
        self._tasks: dict[asyncio.Task[Reply], int] = {}
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def ended_with(self) -> Reply:
        self._ticket.waiting = self._ended
        try:
            if self._ticket.error is not None:
                raise self._ticket.error
            given = zip(self._call.tensors, self._call.body, strict=True)
            self._tensors = {header.name: (header, data) for header, data in given if self._walk.is_needed(header.name)}
            self._start(self._walk.arrived([header.name for header in self._call.tensors]))
            await self._ended
            return self._reply()
        finally:
            for task in self._tasks:
                task.cancel()
            self._tensors = {}

    def _start(self, ready: list[int]) -> None:
        for at in ready:
            step = self._walk.plan.steps[at]
            try:
                step.queue.enter(step.route.max_inflight or NO_BOUND)
            except Overloaded as error:
                self._fail(error, step)
                return
            task = asyncio.ensure_future(self._run_step(step, self._step_call(at), self._ticket))
            self._tasks[task] = at
            task.add_done_callback(self._step_ended)

    def _step_call(self, at: int) -> Call:
        headers, body = [], []
        for inner, outer in self._walk.plan.steps[at].route.input_map.items():
            header, data = self._tensors[outer]
            headers.append(TensorHeader(inner, header.datatype, header.shape, header.size_bytes))
            body.append(data)
        return dataclasses.replace(self._call, id="", tensors=headers, body=body, outputs=self._walk.asked(at))

    def _step_ended(self, task: asyncio.Task[Reply]) -> None:
        at = self._tasks.pop(task)
        step = self._walk.plan.steps[at]
        step.queue.leave()
        error = None if task.cancelled() else task.exception()
        if self._ended.done() or task.cancelled():
            return
        if error is not None:
            self._fail(error, step)
            return
        try:
            made = self._take(step, *task.result())
        except NotReady as broken:
            self._fail(broken, step)
            return
        for name in self._walk.finished(at):
            del self._tensors[name]
        self._start(self._walk.arrived(made))
        if not self._walk.left and not self._ended.done():
            self._ended.set_result(None)

    def _take(self, step: Step, answer: Answer, body: memoryview) -> list[str]:
        """Keeps what somebody waits for; answers its names. Raises NotReady for an answer that contradicts itself."""
        found, place = set[str](), 0
        for header in answer.tensors:
            data = body[place : place + header.size_bytes]
            place += header.size_bytes
            outer = step.route.output_map.get(header.name)
            if outer is not None and self._walk.is_needed(outer) and len(data) == header.size_bytes:
                found.add(outer)
                self._tensors[outer] = TensorHeader(outer, header.datatype, header.shape, header.size_bytes), data
        made = [name for name in step.route.output_map.values() if self._walk.is_needed(name)]
        if found != set(made):
            raise NotReady("the replica sent an unreadable answer")
        self._answers.append(answer)
        return made

    def _fail(self, error: BaseException, step: Step) -> None:
        if not self._ended.done():
            self._ended.set_exception(named(error, step.route.name))

    def _reply(self) -> Reply:
        """The outputs in the signature's order. Times are the sums of all steps'; the batch is the largest."""
        picked = [self._tensors[name] for name in self._walk.outputs]
        bodies = [data for _, data in picked]
        body = memoryview(bodies[0]) if len(bodies) == 1 else memoryview(b"".join(bodies))
        answers = self._answers
        answer = Answer(
            0,
            [header for header, _ in picked],
            max(answer.batch_size for answer in answers),
            sum(answer.queue_ns for answer in answers),
            sum(answer.compute_ns for answer in answers),
            input_ns=sum(answer.input_ns for answer in answers),
            output_ns=sum(answer.output_ns for answer in answers),
        )
        return answer, body


def named(error: BaseException, step: str) -> BaseException:
    """The same error with the step's name before its words."""
    if not isinstance(error, SerinusError):
        return error
    cls: type[Any] = type(error)
    try:
        return cls(f"step '{step}': {error.message}", retry_after_s=error.retry_after_s)  # type: ignore[no-any-return]
    except TypeError:  # Rejected takes other arguments; no step has a reason to raise it
        return error
