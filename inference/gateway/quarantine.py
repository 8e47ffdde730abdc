"""Inputs that kill: a request that was under way in two crashes is not sent to a third replica.

The laws: a crash makes suspects of all that were under way on the lost connection, and each is tried again alone, so
that a killer takes no innocent along a second time. An answer clears its input; a second crash bars it for BARRED_S.
Nothing is hashed or looked up while nobody is suspected. `Record` is pure; `Trials` is its shell in the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING

from inference.errors import PoisonInput, SerinusError

if TYPE_CHECKING:
    from inference.gateway.calls import Call
    from inference.gateway.flights import Flight

BARRED_S = 300.0
SUSPECTED_S = 300.0
MAX_KEPT = 1024
CRASHES = 2
MAX_HASHED_BYTES = 4 << 20
POLL_S = 0.02
WORDS = "The model's process died on exactly this input twice: it is refused for some minutes. Send another input"

# endpoint, version, digest of the tensors
Mark = tuple[str, int, bytes]


def digest_of(call: Call) -> bytes:
    """What tells this request's tensors from others; b"" for those that are too large to be hashed in passing."""
    if sum(len(part) for part in call.body) > MAX_HASHED_BYTES:
        return b""
    found = blake2b(digest_size=16)
    for header in call.tensors:
        found.update(f"{header.name}\0{header.datatype}\0{header.shape}\0{header.size_bytes}\0".encode())
    for part in call.body:
        found.update(part)
    return found.digest()


class Record:
    """How many crashes each input was in. Bounded: the oldest is forgotten first."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.suspects: dict[Mark, tuple[int, int, float]] = {}  # count, the last crash's number, until when it holds

    def crashed(self, mark: Mark, crash: int) -> bool:
        """Counts the crash of this number once; whether the input is barred now."""
        count, last, until = self.suspects.pop(mark, (0, -1, 0.0))
        if until <= self._now():
            count = 0
        count += last != crash or not count
        held_s = BARRED_S if count >= CRASHES else SUSPECTED_S
        self.suspects[mark] = count, crash, self._now() + held_s
        if len(self.suspects) > MAX_KEPT:
            del self.suspects[next(iter(self.suspects))]
        return count >= CRASHES

    def is_barred(self, mark: Mark) -> bool:
        count, _, until = self.suspects.get(mark, (0, -1, 0.0))
        if count and until <= self._now():
            del self.suspects[mark]
            return False
        return count >= CRASHES

    def cleared(self, mark: Mark) -> None:
        """The input was answered: it kills nobody."""
        self.suspects.pop(mark, None)

    def forget(self) -> None:
        """Drops what no longer holds."""
        now = self._now()
        for mark in [mark for mark, (_, _, until) in self.suspects.items() if until <= now]:
            del self.suspects[mark]


class Trials:
    """Suspects of this process, and the lines in which they are tried again: one at a time for each version.

    send: dispatches a flight, as if it had just come; end: ends one with an error. A suspect has its version to itself
    among suspects until it has ended, or for its part of the time that the line has; one that overran this is not
    counted when a replica dies, for it was not alone.
    """

    def __init__(self, send: Callable[[Flight], None], end: Callable[[Flight, SerinusError], None]) -> None:
        self._send = send
        self._end = end
        self._lines: dict[tuple[str, int], deque[Flight]] = {}
        self.tried: dict[Flight, asyncio.TimerHandle] = {}
        self._overran: set[Flight] = set()
        self._held: set[Flight] = set()
        self._crash = 0
        self._is_counting = False
        self.record = Record()
        self.suspects = self.record.suspects  # while this and `tried` are empty, nothing else is worth a call

    def check(self, flight: Flight) -> None:
        """Raises PoisonInput for an input that is barred."""
        if self.record.is_barred(_mark(flight)):
            raise PoisonInput(WORDS)

    def lost(self, flight: Flight) -> bool:
        """A replica died with this request under way; whether its input is barred now."""
        if not self._is_counting:
            # all that one connection takes along is told in one turn of the event loop
            self._is_counting = True
            self._crash += 1
            asyncio.get_running_loop().call_soon(self._counted)
        mark = _mark(flight)
        barred = bool(mark[2]) and flight not in self._overran and self.record.crashed(mark, self._crash)
        self._leave(flight)
        return barred

    def _counted(self) -> None:
        self._is_counting = False
        asyncio.get_running_loop().call_later(BARRED_S + 1, self.record.forget)

    def enter(self, flight: Flight) -> None:
        """Sends a suspect again when its turn comes."""
        key = _line(flight)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = deque()
            asyncio.get_running_loop().call_soon(self._next, key)
        line.append(flight)

    def ended(self, flight: Flight, *, answered: bool) -> None:
        """A request has ended: the next suspect of its version may go."""
        if answered and self.suspects:
            self.record.cleared(_mark(flight))
        self._leave(flight)

    def _leave(self, flight: Flight) -> None:
        timer = self.tried.pop(flight, None)
        self._held.discard(flight)
        has_passed_on = flight in self._overran
        self._overran.discard(flight)
        if timer is not None:
            timer.cancel()
            if not has_passed_on:
                asyncio.get_running_loop().call_soon(self._next, _line(flight))

    def _next(self, key: tuple[str, int]) -> None:
        line = self._lines.get(key)
        if line is None:
            return
        while line:
            flight = line.popleft()
            if flight.has_ended:
                continue
            self._watch(flight, len(line))
            try:
                self._send(flight)
            except SerinusError as error:
                self._end(flight, error)  # which asks for the next one
                return
            if flight.held_until and flight in self.tried:
                self._look(flight, len(line))
            return
        del self._lines[key]

    def _watch(self, flight: Flight, behind: int) -> None:
        """Its turn begins now: so long may it be alone."""
        pause_s = max(POLL_S, flight.remaining_s() / (2 * (behind + 1)))
        self._look_in(pause_s, flight, behind)

    def _look_in(self, pause_s: float, flight: Flight, behind: int) -> None:
        timer = self.tried.pop(flight, None)
        if timer is not None:
            timer.cancel()
        self.tried[flight] = asyncio.get_running_loop().call_later(pause_s, self._look, flight, behind)

    def _look(self, flight: Flight, behind: int) -> None:
        if flight.held_until:  # no replica is there yet, and its turn has not begun
            self._held.add(flight)
            self._look_in(POLL_S, flight, behind)
        elif flight in self._held:
            self._held.discard(flight)
            self._watch(flight, behind)
        else:
            self._overran.add(flight)
            self._next(_line(flight))


def _line(flight: Flight) -> tuple[str, int]:
    return flight.endpoint.route.name, flight.variant.route.version


def _mark(flight: Flight) -> Mark:
    return (*_line(flight), digest_of(flight.call))
