"""Which variant and which replica answers a request: pure, from the table's values and a caller's sticky key.

Variants are chosen by weighted rendezvous hashing (Thaler and Ravishankar 1998, weights by Schindelhauer and
Schomaker 2005): of all variants that have weight, the largest -weight / ln(u) wins, where u in (0, 1) is the hash of
salt, sticky key and version. So shares equal the weights in basis points, the same key always lands on the same
variant, and when a variant's weight rises nobody who was on it leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import log
from typing import Protocol, TypeVar

from inference.protocol.routes import ReplicaRoute, VariantRoute

_SCALE = 2.0**-64


class Busy(Protocol):
    """Anything with a number of requests under way."""

    @property
    def in_flight(self) -> int: ...


B = TypeVar("B", bound=Busy)


def unit(salt: str, sticky: str, version: int) -> float:
    """A stable number in (0, 1) for this caller and version."""
    text = f"{salt}\0{version}\0{sticky}".encode("utf-8", "surrogatepass")
    return (int.from_bytes(blake2b(text, digest_size=8).digest(), "big") + 0.5) * _SCALE


def choose_variant(variants: Sequence[VariantRoute], salt: str, sticky: str) -> VariantRoute | None:
    """The variant that `sticky` belongs to; None when none has any weight."""
    weighted = [variant for variant in variants if variant.weight_bp > 0]
    if len(weighted) < 2:
        return weighted[0] if weighted else None
    # u so near to 1 that it rounds to it would divide by zero: 2**-53 stands for its logarithm
    return max(
        weighted,
        key=lambda variant: variant.weight_bp / max(-log(unit(salt, sticky, variant.version)), 2.0**-53),
    )


def newest(replicas: Sequence[ReplicaRoute]) -> list[ReplicaRoute]:
    """Of every replica id only the newest generation: an older one has been fenced off."""
    best: dict[str, ReplicaRoute] = {}
    for replica in replicas:
        known = best.get(replica.id)
        if known is None or known.generation < replica.generation:
            best[replica.id] = replica
    return list(best.values())


def less_busy(candidates: Sequence[B], first: float, second: float) -> B:
    """The less busy of two candidates drawn by the random numbers `first` and `second` in [0, 1); the two differ."""
    count = len(candidates)
    if count == 1:
        return candidates[0]
    one = int(first * count)
    other = (one + 1 + int(second * (count - 1))) % count
    a, b = candidates[one], candidates[other]
    return b if b.in_flight < a.in_flight else a
