"""Which of a version's replicas gets a request: the one whose memory it lies in, the one that holds its sequence, or the
less busy of two.

Sequences belong to their caller: one key's sequence 7 is not another's, nor the sequence "7".
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from inference.errors import NotReady
from inference.gateway import choosing
from inference.gateway.affinity import Affinity, SequenceKey
from inference.gateway.calls import Call
from inference.gateway.choosing import Asked
from inference.gateway.connections import Link
from inference.gateway.flights import Flight
from inference.gateway.lending import lender_of
from inference.gateway.router import less_busy
from inference.gateway.table import Variant
from inference.protocol.messages import SequenceControl

Reader = Callable[[Variant], Call]


class Replicas:
    """Of one gateway: what it knows of sequences."""

    def __init__(self) -> None:
        self._random = random.Random()  # noqa: S311 (spreads load, guards nothing)
        self._affinity = Affinity()

    def pick(self, variant: Variant) -> Link | None:
        """For a request that any of them may answer; None when none is ready."""
        return self._of(variant.links)

    def _of(self, links: list[Link]) -> Link | None:
        if len(links) == 1:
            return links[0] if links[0].ready else None
        ready = [link for link in links if link.ready]
        if len(ready) < 2:
            return ready[0] if ready else None
        return less_busy(ready, self._random.random(), self._random.random())

    def pick_for(self, flight: Flight) -> Link | None:
        """For this request; None when none is ready. Raises SequenceLost."""
        sequence = flight.call.sequence
        if sequence is not None:
            return self._holding(flight, sequence)
        lending = lender_of(flight.call.body) if len(flight.variant.links) > 1 else None
        chosen = [link for link in flight.variant.links if link.lender is lending and link.ready] if lending else []
        if chosen:
            return chosen[0]
        return self._of(flight.variant.links if flight.origin is None else unheld(flight.variant, flight.origin))

    def _holding(self, flight: Flight, sequence: SequenceControl) -> Link | None:
        links = {link.route.id: link for link in flight.variant.links}
        ready = [name for name, link in links.items() if link.ready]
        draining = [name for name, link in links.items() if link.draining]
        key = _key_of(flight, sequence)
        try:
            found = self._affinity.pick(key, ready, is_start=sequence.start, now=time.monotonic(), draining=draining)
        except NotReady:
            return None
        return links[found]

    def settle(self, flight: Flight, asked: Asked, reader: Reader, sequence: SequenceControl) -> Call:
        """A sequence stays on the version that it began on, and begins where its own id puts it."""
        endpoint = asked.endpoint
        if asked.version is None and endpoint.only is None:
            numbers = list(endpoint.variants)
            began = self._affinity.version_of(endpoint.route.name, numbers, _name_of(flight, sequence))
            if began is None or sequence.start:
                variant = choosing.chosen(asked, _name_of(flight, sequence))
            else:
                variant = endpoint.variants[began].counted(flight.variant.apart)
            if variant is not flight.variant:
                flight.variant = variant
                flight.call = reader(variant)
        return flight.call

    def answered(self, flight: Flight) -> None:
        """With the answer to its END a sequence is over."""
        sequence = flight.call.sequence
        if sequence is not None and sequence.end:
            self._affinity.ended(_key_of(flight, sequence))

    def lost(self, replica: str) -> None:
        """Its connection ended, and its sequences with it."""
        self._affinity.lost(replica)


def unheld(variant: Variant, origin: Flight) -> list[Link]:
    """The version's replicas with an instance that is not held by those in whose course a request is made: there it would
    wait for itself. A decoupled model may take several requests at once, and the deadline decides.
    """
    if variant.route.settings.decoupled:
        return variant.links
    held = [flight.link for flight in origin.chain()]
    return [link for link in variant.links if held.count(link) < variant.route.settings.instances]


def _name_of(flight: Flight, sequence: SequenceControl) -> str:
    return f"{flight.key}\0{type(sequence.id).__name__}\0{sequence.id}"


def _key_of(flight: Flight, sequence: SequenceControl) -> SequenceKey:
    return SequenceKey(flight.endpoint.route.name, flight.variant.route.version, _name_of(flight, sequence))
