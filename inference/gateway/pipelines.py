"""A request's way through a graph of versions: which step may run, what is passed on, what may be forgotten.

`Plan` and `Walk` are pure; a `Run` is one request. A step runs as soon as its inputs are there, and steps that do not
wait for each other run side by side, each as a flight of its own. Tensors are passed on as the bytes that they came as;
only what leads to a wanted output runs. The first failure ends the request, and the steps under way are abandoned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from inference.errors import DeadlineExceeded, NotReady, SerinusError
from inference.gateway.calls import Call
from inference.gateway.flights import Flight
from inference.protocol.messages import Answer, TensorHeader
from inference.protocol.routes import StepRoute

if TYPE_CHECKING:
    from inference.gateway.table import Endpoint

Bytes = bytes | memoryview
Tensor = tuple[TensorHeader, Bytes]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step, and the endpoint (which no client can name) behind which its version's replicas are."""

    route: StepRoute
    endpoint: Endpoint


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
        return all(variant.is_routed for step in self.steps for variant in step.endpoint.variants.values())

    @property
    def is_ready(self) -> bool:
        return all(variant.is_ready for step in self.steps for variant in step.endpoint.variants.values())

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


class Plane(Protocol):
    """What a run asks of the data plane."""

    def start_step(self, flight: Flight, outer: Flight, step: Endpoint, call: Call) -> None:
        """Sets one step on its way. Raises what is wrong at once; all else comes to the flight."""
        ...

    def answered(self, flight: Flight, answer: Answer) -> None: ...

    def abandon(self, flight: Flight) -> None: ...

    def end(self, flight: Flight, error: SerinusError) -> None: ...


class Run:
    """One request under way through a graph. It stands where the flight's link would stand: whoever ends the flight has
    it `forget`, and then nobody waits for the steps any more.
    """

    __slots__ = ("_answers", "_flight", "_has_ended", "_plane", "_steps", "_tensors", "_walk")

    def __init__(self, plane: Plane, flight: Flight, plan: Plan) -> None:
        self._plane = plane
        self._flight = flight
        self._walk = Walk(plan, flight.call.outputs)
        self._tensors: dict[str, Tensor] = {}
        self._answers: list[Answer] = []
        self._steps: dict[int, Flight] = {}
        self._has_ended = False

    def begin(self) -> None:
        """Starts what can start. The call fits the graph's signature, and all its rows travel together, so its batch
        is not looked at again. Raises the error of a step that cannot even start, with its name in it.
        """
        call = self._flight.call
        given = zip(call.tensors, call.body, strict=True)
        self._tensors = {header.name: (header, data) for header, data in given if self._walk.is_needed(header.name)}
        try:
            self._start(self._walk.arrived([header.name for header in call.tensors]))
        except SerinusError:
            self.forget(self._flight)
            raise

    def forget(self, _flight: Flight) -> None:
        """Nobody waits any more: the steps under way are abandoned, and their replicas are told."""
        self._has_ended = True
        self._tensors = {}
        steps, self._steps = self._steps, {}
        for step in steps.values():
            self._plane.abandon(step)

    def pause(self, _flight: Flight) -> None:
        """A pipeline gives one answer: there is nothing to hold back."""

    def resume(self, _flight: Flight) -> None:
        """As `pause`."""

    def _start(self, ready: list[int]) -> None:
        for at in ready:
            step = self._walk.plan.steps[at]
            flight = _StepFlight(self, at)
            try:
                self._plane.start_step(flight, self._flight, step.endpoint, self._step_call(at))
            except SerinusError as error:
                raise named(error, step.route.name) from error
            self._steps[at] = flight

    def step_answered(self, at: int, flight: Flight, answer: Answer, body: memoryview) -> None:
        step = self._walk.plan.steps[at]
        if not answer.final:
            self._end(named(NotReady("it gave more than one answer"), step.route.name))
            return
        self._steps.pop(at, None)
        self._plane.answered(flight, answer)
        if self._has_ended:
            return
        try:
            made = self._take(step, answer, body)
            for name in self._walk.finished(at):
                del self._tensors[name]
            self._start(self._walk.arrived(made))
        except SerinusError as error:
            self._end(error)
            return
        if not self._walk.left:
            self._reply()

    def step_failed(self, at: int, error: SerinusError) -> None:
        self._steps.pop(at, None)
        if not self._has_ended:
            self._end(named(error, self._walk.plan.steps[at].route.name))

    def _end(self, error: SerinusError) -> None:
        self._plane.end(self._flight, error)

    def _step_call(self, at: int) -> Call:
        headers, body = [], []
        for inner, outer in self._walk.plan.steps[at].route.input_map.items():
            header, data = self._tensors[outer]
            headers.append(TensorHeader(inner, header.datatype, header.shape, header.size_bytes))
            body.append(data)
        return msgspec.structs.replace(
            self._flight.call, tensors=headers, body=body, outputs=self._walk.asked(at), sequence=None
        )

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
            raise named(NotReady("the replica sent an unreadable answer"), step.route.name)
        self._answers.append(answer)
        return made

    def _reply(self) -> None:
        """The outputs in the signature's order. Times are the sums of all steps'; the batch is the largest."""
        self._has_ended = True
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
            is_invalid=any(answer.is_invalid for answer in answers),
        )
        flight = self._flight
        flight.has_ended, flight.link = True, None
        flight.parts += 1
        flight.take(answer, body)


class _StepFlight(Flight):
    """One step's request; what becomes of it is told to the run."""

    __slots__ = ("_at", "_run")

    def __init__(self, run: Run, at: int) -> None:
        super().__init__()
        self._run = run
        self._at = at

    def answered(self, answer: Answer, body: memoryview) -> None:
        self._run.step_answered(self._at, self, answer, body)

    def failed(self, error: SerinusError) -> None:
        self._run.step_failed(self._at, error)


def named(error: SerinusError, step: str) -> SerinusError:
    """The same error with the step's name before its words; that the time is up is nobody's fault."""
    cls: type[Any] = type(error)
    if isinstance(error, DeadlineExceeded):
        return error
    try:
        found: SerinusError = cls(f"step '{step}': {error.message}", retry_after_s=error.retry_after_s)
    except TypeError:  # Rejected takes other arguments; no step has a reason to raise it
        return error
    return found
