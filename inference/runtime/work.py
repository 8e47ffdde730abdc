"""What a replica's server hands to an executor, and what comes back. Every executor keeps this contract.

The law of a ticket: its `reply` is called with `final=True` exactly once, unless it was cancelled, and never after
that nor after a cancel; never from within `submit`. Only a decoupled model calls it with `final=False` before.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from math import inf
from types import MappingProxyType
from typing import Any, Protocol

import msgspec
import numpy as np

from inference.errors import SerinusError
from inference.protocol.messages import SequenceControl
from inference.protocol.statistics import ModelStatistics

Arrays = dict[str, np.ndarray[Any, Any]]
Scalar = str | int | float | bool
NO_PARAMETERS: Mapping[str, Scalar] = MappingProxyType({})


# Structs, because one of each is made for every request, in C here and in a third of the time of a dataclass.
class Outcome(msgspec.Struct, eq=False):
    """A request's outputs, the rows that ran together with it (its own included), and where its time went.

    input_ns, compute_ns, output_ns are the whole batch's: putting it together, the forward pass, taking it apart.
    is_invalid: a floating-point output that was asked for holds NaN or infinity.
    """

    outputs: Arrays
    batch_size: int
    queue_ns: int
    compute_ns: int
    input_ns: int = 0
    output_ns: int = 0
    is_cached: bool = False
    parameters: Mapping[str, Scalar] = NO_PARAMETERS
    is_invalid: bool = False


Reply = Callable[["Ticket", "Outcome | SerinusError", bool], None]


class Ticket(msgspec.Struct, eq=False, weakref=True):
    """One request under way. `is_waiting` until it is taken into a batch, cancelled or expired; `has_ended` once its
    caller was told, or left. deadline, arrived_at: seconds of the monotonic clock.

    The batcher's own marks: `due`, when it may wait no longer; `is_delayable`: then it goes behind all others instead
    of being refused; `rank`, its place in the line; `group`, with whom it may run; `length`, of its longest row, and
    `elements`, of all its rows, where rows have lengths; `passed`, how many batches of later ones went before it.
    """

    inputs: Arrays
    rows: int
    deadline: float
    arrived_at: float
    reply: Reply
    priority: int = 0
    queue_timeout_us: int = 0
    sequence: SequenceControl | None = None
    parameters: Mapping[str, Scalar] = NO_PARAMETERS
    outputs: Sequence[str] = ()
    key: str = ""
    traceparent: str = ""
    tracestate: str = ""
    order: int = 0
    is_waiting: bool = True
    has_ended: bool = False
    due: float = inf
    is_delayable: bool = False
    rank: tuple[int, int, int] = (0, 0, 0)
    group: Any = None
    length: int = 0
    elements: int = 0
    passed: int = 0

    def wanted(self, outputs: Arrays) -> Arrays:
        """Of these outputs those that it asks for."""
        return {name: array for name, array in outputs.items() if name in self.outputs} if self.outputs else outputs

    def end(self, result: Outcome | SerinusError) -> None:
        """Tells the caller how it ended; nothing happens when that is known or nobody waits."""
        if not self.has_ended:
            self.has_ended = True
            self.reply(self, result, True)


def awaited(future: Future[Outcome]) -> Reply:
    """A reply that ends `future`, for callers who wait in a coroutine."""

    def reply(_ticket: Ticket, result: Outcome | SerinusError, final: bool) -> None:
        if final and not future.done():
            if isinstance(result, SerinusError):
                future.set_exception(result)
            else:
                future.set_result(result)

    return reply


class Executor(Protocol):
    """Runs tickets. Belongs to one running event loop, in which every method and every reply is called."""

    @property
    def statistics(self) -> ModelStatistics:
        """Exact sums; a request is in them before its reply is called."""
        ...

    @property
    def queue_depth(self) -> int: ...

    @property
    def in_flight(self) -> int:
        """Waiting and running."""
        ...

    def submit(self, ticket: Ticket) -> None:
        """Takes a request in. Raises InvalidInput, DeadlineExceeded, Overloaded or what closed this."""
        ...

    def cancel(self, ticket: Ticket) -> None:
        """The caller has left: a waiting request is dropped, a running one's answer goes nowhere."""
        ...

    def pause(self, ticket: Ticket) -> None:
        """The caller reads slowly: a decoupled model's next answers wait until `resume`. Others ignore it."""
        ...

    def resume(self, ticket: Ticket) -> None: ...

    def close(self, reason: SerinusError | None = None) -> None:
        """Refuses new requests with `reason` (Draining); what is under way still runs."""
        ...

    async def drained(self, timeout_s: float) -> bool:
        """Waits until nothing is under way; False when that took too long."""
        ...

    def stop(self) -> None:
        """Ends everything now: whoever is under way is told that the replica is gone."""
        ...
