"""Business logic scripting: a model's own requests, and the responses that it gets.

Source of names, codes and meanings: the public documentation of Triton's Python backend.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from inference import errors
from inference.errors import DeadlineExceeded, SerinusError
from inference.models.calling import Found, Line, Question
from inference.models.triton_python import executions
from inference.models.triton_python.tensors import BF16, FROM_NUMPY, NUMPY, Tensor, TritonModelException
from inference.protocol.messages import SequenceControl
from inference.protocol.oip import DATATYPES

if TYPE_CHECKING:
    from inference.models.triton_python.backend_utils import InferenceRequest

R = TypeVar("R")
Arrived = Found | SerinusError
WHERE = "BLS is supported only during the 'execute' function."  # as Triton says it
SPARE_S = 2.0
_DATATYPES = {number: "BYTES" if name == "TYPE_STRING" else name[5:] for number, name in enumerate(NUMPY, start=1)}
START, END = 1, 2
# By Triton's numbers; all else is INTERNAL.
CODES: tuple[tuple[type[SerinusError], int], ...] = (
    (errors.NotFound, 2),
    (errors.Unsupported, 5),
    (errors.Conflict, 6),
    (errors.Cancelled, 7),
    (errors.ClientError, 3),
    (errors.NotReady, 4),
    (errors.Overloaded, 4),
    (errors.Draining, 4),
    (errors.ReplicaLost, 4),
    (errors.DeadlineExceeded, 4),
)
INTERNAL = 1


def code_of(error: SerinusError) -> int:
    """Triton's code for one of our errors."""
    return next((code for kind, code in CODES if isinstance(error, kind)), INTERNAL)


def question(request: InferenceRequest, *, many: bool) -> Question:
    """Raises TritonModelException for what cannot be sent."""
    version = request.model_version()
    if not isinstance(version, int) or version == 0 or version < -1:
        raise TritonModelException(f"model_version must be a version's number, or -1, not {version!r}")
    identity, flags = request.correlation_id(), request.flags()
    sequence = SequenceControl(identity, bool(flags & START), bool(flags & END)) if identity else None
    return Question(
        request.model_name(),
        [(tensor.name(), datatype_of(tensor), tensor.carried) for tensor in request.inputs()],
        max(version, 0),
        request.requested_output_names(),
        request.said,
        sequence,
        request.timeout(),
        request.request_id(),
        request.trace().traceparent,
        many,
    )


def datatype_of(tensor: Tensor) -> str:
    """The protocol's datatype. Raises TritonModelException for a dtype that it does not have."""
    if tensor.is_bf16:
        return BF16
    kind = tensor.carried.dtype
    if kind.kind in "OSU":
        return "BYTES"
    number = FROM_NUMPY.get(kind.type)
    if number is None or _DATATYPES[number] not in DATATYPES:
        raise TritonModelException(f"tensor '{tensor.name()}' is {kind}, which no model takes")
    return _DATATYPES[number]


def tensors_of(found: Found) -> list[Tensor]:
    """Raises InvalidInput for an answer that contradicts itself."""
    return [Tensor.of(name, array, is_bf16=datatype == BF16) for name, datatype, array in found.outputs()]


def _execution() -> executions.Execution:
    found = executions.current()
    if found is None:
        raise TritonModelException(WHERE)
    return found


class Answers(Generic[R]):
    """The responses of one call, as they come; iterated in any thread. Whoever stops early leaves the call. `made`: turns what
    arrived into a response.
    """

    def __init__(self, asked: Question, made: Callable[[Arrived], R | None]) -> None:
        self._made = made
        self._box: queue.SimpleQueue[Arrived] = queue.SimpleQueue()
        self._line: Line | None = None
        self._patience_s = 0.0
        self._has_ended = False
        try:
            self._line, self._patience_s = executions.call(_execution(), asked, self._box.put)
        except SerinusError as error:
            self._box.put(error)

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        while not self._has_ended:
            try:
                arrived = self._box.get(timeout=self._patience_s + SPARE_S)
            except queue.Empty:
                arrived = DeadlineExceeded()
                self.close()
            self._has_ended = isinstance(arrived, SerinusError) or arrived.is_final
            if self._line is not None and not self._has_ended:
                self._line.took()
            found = self._made(arrived)
            if found is not None:
                return found
        raise StopIteration

    def close(self) -> None:
        """Nobody wants the rest."""
        if self._line is not None and not self._has_ended:
            self._line.leave()

    def __del__(self) -> None:
        self.close()


def awaited(asked: Question, made: Callable[[Arrived], R | None]) -> asyncio.Future[R]:
    """The one response. Cancelling the future leaves the call. Raises TritonModelException outside of `async def execute`."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise TritonModelException("async_exec needs 'async def execute'") from None
    future: asyncio.Future[R] = loop.create_future()

    def came(arrived: Arrived) -> None:
        if not future.done():
            found = made(arrived)
            assert found is not None
            future.set_result(found)

    try:
        line, _ = executions.call(_execution(), asked, lambda arrived: loop.call_soon_threadsafe(came, arrived))
    except SerinusError as error:
        came(error)
    else:
        future.add_done_callback(lambda done: line.leave() if done.cancelled() else None)
    return future


def ready(value: Any) -> asyncio.Future[Any]:
    """A future that has its result."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future
