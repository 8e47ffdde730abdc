"""One stream: what is known of it at both ends, and who takes what comes on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Protocol

from inference.gateway.http2.frames import Part
from inference.gateway.http2.headers import Head
from inference.gateway.http2.limits import MAX_CUT

if TYPE_CHECKING:
    from inference.gateway.http2.machine import Machine


class Receiver(ABC):
    """Takes what comes on a stream. Nothing here raises; each method may answer the stream, or end it."""

    __slots__ = ()

    @abstractmethod
    def data(self, part: bytes) -> None:
        """The next bytes of the body."""

    @abstractmethod
    def ended(self) -> None:
        """The peer has said all."""

    @abstractmethod
    def left(self) -> None:
        """The stream is over before it was answered: the peer, or the connection, is gone."""

    def room(self) -> memoryview | None:
        """Where the next bytes of the body shall be received; None: they come by `data`."""
        return None

    def filled(self, size: int) -> None:
        """So many bytes of `room` have come."""
        raise AssertionError("there was no room")

    def sent(self) -> None:  # noqa: B027 (most wait for nothing)
        """What was handed over is on its way, as far as the peer takes it: more may follow."""

    def beat(self, now: float) -> None:  # noqa: B027
        """Once a second. now: monotonic s."""


class Stream:
    """in_window, out_window: bytes that may still come, or go. pending: handed over and not sent yet. has_begun: its
    head was answered. opened_at: monotonic s. stalled_since: monotonic s, since when the peer takes nothing of what is pending; 0: it does.
    """

    __slots__ = (
        "has_begun", "head", "in_window", "is_closed_in", "is_closed_out", "number", "opened_at", "out_window", "pending",
        "pending_bytes", "receiver", "stalled_since", "tail",
    )  # fmt: skip

    def __init__(self, number: int, head: Head, in_window: int, out_window: int, opened_at: float) -> None:
        self.number = number
        self.opened_at = opened_at
        self.head = head
        self.in_window = in_window
        self.out_window = out_window
        self.receiver: Receiver | None = None
        self.pending: deque[Part] = deque()
        self.pending_bytes = 0
        self.tail: bytes | None = None  # the header block that ends it
        self.has_begun = False
        self.is_closed_in = False
        self.is_closed_out = False
        self.stalled_since = 0.0


class Application(Protocol):
    """Who answers a connection's streams."""

    def opened(self, machine: Machine, stream: Stream) -> Receiver | None:
        """A request has begun; None: it was answered, or ended, already. Raises nothing."""
        ...


def leave(stream: Stream) -> None:
    """Its receiver is told that it is over, and forgotten."""
    receiver, stream.receiver = stream.receiver, None
    if receiver is not None:
        receiver.left()


class Cut:
    """The numbers of streams that ended here before their peer had said all; the oldest are forgotten."""

    __slots__ = ("_numbers",)

    def __init__(self) -> None:
        self._numbers: dict[int, None] = {}

    def add(self, number: int) -> None:
        if len(self._numbers) >= MAX_CUT:
            del self._numbers[next(iter(self._numbers))]
        self._numbers[number] = None

    def __contains__(self, number: int) -> bool:
        return number in self._numbers
