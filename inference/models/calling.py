"""How a model that runs code asks another model: what it hands over, and what it hears. The replica's server carries it.

A call is made for requests that are being executed (`About.calls`, `About.number`); it has no socket and no address of its
own. All of this may be used from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from inference.errors import SerinusError

if TYPE_CHECKING:
    import numpy as np

    from inference.protocol.messages import SequenceControl

Scalar = str | int | float | bool
Named = tuple[str, str, "np.ndarray[Any, Any]"]  # name, datatype (BF16 carried as uint16, BYTES as objects), values


@dataclass(frozen=True, slots=True)
class Question:
    """What a model asks of another. version 0: the endpoint's own choice. many: any number of answers is taken.
    timeout_us: the model's own bound, 0 for none.
    """

    model: str
    inputs: Sequence[Named]
    version: int = 0
    outputs: Sequence[str] = ()
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    sequence: SequenceControl | None = None
    timeout_us: int = 0
    request_id: str = ""
    traceparent: str = ""
    many: bool = False


class Found(Protocol):
    """One answer."""

    @property
    def is_final(self) -> bool: ...

    @property
    def parameters(self) -> Mapping[str, Scalar]: ...

    def outputs(self) -> list[Named]:
        """Read-only arrays. Raises InvalidInput for an answer that contradicts itself."""
        ...


Told = Callable[[Found | SerinusError], object]


class Line(Protocol):
    """A call under way."""

    def took(self) -> None:
        """One answer was read: who sends many waits while too many are not."""
        ...

    def leave(self) -> None:
        """Nobody waits for it any more; nothing is told after that."""
        ...


class Calls(Protocol):
    """The way to other models."""

    def call(self, question: Question, parents: Sequence[int], timeout_s: float, told: Told) -> Line:
        """Sends it, for the requests with these numbers. `told` hears each answer, or one error, in a thread that must not
        be held up; after `timeout_s` at the latest. Raises what is wrong at once: TooLarge, Overloaded, ReplicaLost.
        """
        ...
