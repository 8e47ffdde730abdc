"""The last wanted set on disk: replicas come back after a restart of the host though the database is dead."""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from inference.host.decide import Wanted
from inference.protocol import files
from inference.protocol.supervision import ReplicaSpec

log = structlog.get_logger()


class Kept(msgspec.Struct, frozen=True):
    """newest: the highest generation seen of each replica, the fence that a restart must not lower."""

    replicas: list[ReplicaSpec]
    newest: dict[str, int]


def load(path: Path) -> Kept:
    """What was wanted last; nothing when the file is missing or unreadable (the agent will say it again)."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return Kept([], {})
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("wanted.unreadable", error=str(error))
        return Kept([], {})


def save(path: Path, wanted: Wanted, newest: dict[str, int]) -> None:
    """Atomic and durable. A full disk is logged, never fatal: the replicas serve on."""
    data = msgspec.json.encode(Kept([wanted[name] for name in sorted(wanted)], newest))
    try:
        files.put(path, data, durable=True)
    except OSError as error:
        log.warning("wanted.not_saved", error=str(error))
