"""Messages between the supervisor, its fork server and the forked children.

The fork server is told over a socket pair what to fork; descriptors travel beside the message (SCM_RIGHTS) in the
order control, listener. Each child reports over its control socket and is told there to drain, and which adapters to
have. Frames, no body.
"""

from __future__ import annotations

import hashlib

import msgspec

from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import AdapterSeen, CheckSeen, ReplicaSpec, ValidationSeen, ValidationSpec


class ChildPaths(msgspec.Struct, frozen=True):
    """Where a child finds and leaves things: the read-only blob store, and a folder of its own (0700) that it may
    write to and that its parent removes after it. blobs/ab/abcdef... holds the file with that sha256. What lies in
    work_dir/adapters is its parent's: the child may only read it.
    """

    artifacts_dir: str
    work_dir: str


class StartReplica(msgspec.Struct, tag="replica", frozen=True):
    """Supervisor -> fork server, with descriptors [control, listener].

    is_fake_device: the spec's device is one of SERINUS_FAKE_DEVICES, so the child computes on the CPU instead.
    """

    spec: ReplicaSpec
    paths: ChildPaths
    is_fake_device: bool = False


class StartValidation(msgspec.Struct, tag="validation", frozen=True):
    """Supervisor -> fork server, with descriptors [control]."""

    spec: ValidationSpec
    paths: ChildPaths


class Forked(msgspec.Struct, tag="forked", frozen=True):
    """Fork server -> supervisor, with descriptors [pidfd]. `token` is the replica's or run's id.

    pid 0, without a descriptor: the system had no process to give.
    """

    token: str
    pid: int


class Exited(msgspec.Struct, tag="exited", frozen=True):
    """Fork server -> supervisor. status: exit code, or minus the signal's number."""

    pid: int
    status: int


class Standby(msgspec.Struct, tag="standby", frozen=True):
    """Fork server -> supervisor: everything is imported, children now stand within milliseconds."""

    import_ms: float


class PhaseReport(msgspec.Struct, tag="phase", frozen=True):
    """Child -> supervisor, at every change of phase and once a second when ready (the heartbeat).

    busy_s: seconds of computing since it started, all in all. device_memory_bytes: what the framework holds of the
    accelerator. compiles_after_ready: must stay 0, or a request paid for a compilation.
    """

    phase: ReplicaPhase
    message: str = ""
    memory_bytes: int = 0
    queue_depth: int = 0
    busy_s: float = 0.0
    device_memory_bytes: int = 0
    compiles_after_ready: int = 0


class ValidationReport(msgspec.Struct, tag="validation", frozen=True):
    """Child -> supervisor, whenever a line of the checklist changes; the last one has a final state."""

    seen: ValidationSeen


class AdaptersReport(msgspec.Struct, tag="adapters_seen", frozen=True):
    """Child -> supervisor, whenever an adapter of a language model has come, gone or failed: all of them."""

    adapters: list[AdapterSeen]


class CheckReport(msgspec.Struct, tag="check", frozen=True):
    check: CheckSeen


class Drain(msgspec.Struct, tag="drain", frozen=True):
    """Supervisor -> child: refuse new requests, answer what is under way within `timeout_s`, then exit 0."""

    timeout_s: float


class AdapterAt(msgspec.Struct, frozen=True):
    """An adapter whose verified files lie in WORK/adapters/DIGEST."""

    name: str
    digest: str


class SetAdapters(msgspec.Struct, tag="adapters", frozen=True):
    """Supervisor -> child: have exactly these adapters. Those that leave finish what has begun with them."""

    adapters: list[AdapterAt]


ToForkServer = StartReplica | StartValidation
FromForkServer = Forked | Exited | Standby
FromChild = PhaseReport | ValidationReport | CheckReport | AdaptersReport
ToChild = Drain | SetAdapters


def short(name: str) -> str:
    """Twelve safe characters that stand for any id in file names."""
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def replica_log(replica: str, generation: int) -> str:
    """The name of a replica's log file in its host's log folder: the same for every life of that replica."""
    return f"replica-{short(replica)}-{generation}.log"
