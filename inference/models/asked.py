"""What a caller says beside its inputs, and what a model answers beside its outputs: for models that look at requests.

A replica gives a `RequestModel` each request's arrays as a `Request`; the model may answer with a `Response`. Both are
arrays to everybody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from inference.models.calling import Calls
    from inference.protocol.messages import SequenceControl

Scalar = str | int | float | bool


def _stays() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class About:
    """outputs: the wanted ones, empty for all. timeout_us: the request's own, 0 for none. has_left: whether the caller
    has left or was answered meanwhile; it may be called from any thread. deadline: seconds of the monotonic clock.
    calls: the way to other models, None where none may be called; number: this request's there.
    """

    request_id: str = ""
    outputs: Sequence[str] = ()
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    sequence: SequenceControl | None = None
    timeout_us: int = 0
    traceparent: str = ""
    has_left: Callable[[], bool] = _stays
    deadline: float = inf
    calls: Calls | None = None
    number: int = 0


NOTHING_SAID = About()


class Request(dict[str, "np.ndarray[Any, Any]"]):
    """One request's inputs, by name."""

    __slots__ = ("about",)

    def __init__(self, inputs: Mapping[str, np.ndarray[Any, Any]], about: About) -> None:
        super().__init__(inputs)
        self.about = about

    def copy(self) -> Request:
        return Request(self, self.about)


class Response(dict[str, "np.ndarray[Any, Any]"]):
    """One request's outputs, by name, and the parameters that go back beside them."""

    __slots__ = ("parameters",)

    def __init__(self, outputs: Mapping[str, np.ndarray[Any, Any]], parameters: Mapping[str, Scalar]) -> None:
        super().__init__(outputs)
        self.parameters = parameters

    def copy(self) -> Response:
        return Response(self, self.parameters)


def about(inputs: Mapping[str, np.ndarray[Any, Any]]) -> About:
    """What was said beside these inputs; nothing, where they are plain arrays."""
    return inputs.about if isinstance(inputs, Request) else NOTHING_SAID


def said(outputs: Mapping[str, np.ndarray[Any, Any]]) -> Mapping[str, Scalar]:
    """The parameters beside these outputs."""
    return outputs.parameters if isinstance(outputs, Response) else {}
