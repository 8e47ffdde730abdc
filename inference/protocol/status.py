"""Lifecycles that more than one process sees, each with its table of legal moves."""

from __future__ import annotations

from enum import StrEnum


class ReplicaPhase(StrEnum):
    """Where a replica's process stands, as its supervisor sees it."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    BACKOFF = "backoff"
    FAILED = "failed"
    STOPPED = "stopped"


REPLICA_MOVES: dict[ReplicaPhase, frozenset[ReplicaPhase]] = {
    ReplicaPhase.STARTING: frozenset(
        {ReplicaPhase.LOADING, ReplicaPhase.BACKOFF, ReplicaPhase.FAILED, ReplicaPhase.STOPPED}
    ),
    ReplicaPhase.LOADING: frozenset(
        {ReplicaPhase.WARMING, ReplicaPhase.BACKOFF, ReplicaPhase.FAILED, ReplicaPhase.STOPPED}
    ),
    ReplicaPhase.WARMING: frozenset(
        {ReplicaPhase.READY, ReplicaPhase.BACKOFF, ReplicaPhase.FAILED, ReplicaPhase.STOPPED}
    ),
    ReplicaPhase.READY: frozenset(
        {ReplicaPhase.DRAINING, ReplicaPhase.BACKOFF, ReplicaPhase.FAILED, ReplicaPhase.STOPPED}
    ),
    ReplicaPhase.DRAINING: frozenset({ReplicaPhase.STOPPED}),
    ReplicaPhase.BACKOFF: frozenset({ReplicaPhase.STARTING, ReplicaPhase.FAILED, ReplicaPhase.STOPPED}),
    ReplicaPhase.FAILED: frozenset({ReplicaPhase.STARTING, ReplicaPhase.STOPPED}),
    ReplicaPhase.STOPPED: frozenset(),
}


def check_move(old: ReplicaPhase, new: ReplicaPhase) -> ReplicaPhase:
    """`new` if a replica may go there from `old`; raises ValueError with both names otherwise."""
    if new not in REPLICA_MOVES[old]:
        raise ValueError(f"illegal move of a replica: {old} -> {new}")
    return new
