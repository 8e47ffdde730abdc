"""A replica's LoRA adapters: their files, verified, in its own work folder, and what it is told and tells of them.

The child may read WORK/adapters and never write there, so what was verified is what it loads. Copies, not links: the
child's sandbox was closed around the blobs that it knew when it began.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import structlog

from inference.host.adopt import PIECE_BYTES, SHA256
from inference.host.child import Child
from inference.host.folders import remove
from inference.protocol.child import AdapterAt
from inference.protocol.supervision import AdapterSeen, AdapterSpec, FileRef

log = structlog.get_logger()
FOLDER = "adapters"
STATES = frozenset({"waiting", "loaded", "failed", "leaving"})
MAX_TOLD = 1024
MAX_MESSAGE = 500


class ReplicaAdapters:
    """Of one replica over all its lives; `begin` starts each of them."""

    def __init__(self, artifacts_dir: Path, wanted: Sequence[AdapterSpec]) -> None:
        self._blobs = artifacts_dir / "blobs"
        self._wanted = list(wanted)
        self._work = Path()
        self._brought: set[str] = set()
        self._faults: dict[str, str] = {}
        self._child: Child | None = None
        self._seen: list[AdapterSeen] = []
        self._changing: asyncio.Task[None] | None = None
        self._is_told = True

    async def begin(self, work: Path) -> list[AdapterSpec]:
        """Brings the files of a new life's adapters into its work folder; answers those whose files are there."""
        self._work, self._brought, self._faults, self._seen = work, set(), {}, []
        self._is_told = True
        return await self._bring()

    def attach(self, child: Child | None) -> None:
        """`child` is to be told of changes from now on; None: it has ended."""
        self._child = child
        self._go_on()

    def want(self, wanted: Sequence[AdapterSpec]) -> None:
        """Have exactly these. Soon, and in the background; what is the same already costs nothing."""
        if list(wanted) != self._wanted:
            self._wanted, self._is_told = list(wanted), False
            self._go_on()

    def hear(self, seen: list[AdapterSeen]) -> None:
        """What the child tells of them; it is not trusted, so it is bounded."""
        known = [one for one in seen[:MAX_TOLD] if one.state in STATES]
        self._seen = [
            AdapterSeen(one.name[:64], one.digest[:64], one.state, one.message[:MAX_MESSAGE]) for one in known
        ]

    def seen(self) -> list[AdapterSeen]:
        """Every wanted adapter once, and those that are leaving."""
        told = {(one.name, one.digest): one for one in self._seen}
        found = [self._standing(spec, told.pop((spec.name, spec.digest), None)) for spec in self._wanted]
        return found + [one for one in told.values() if one.state == "leaving"]

    def stop(self) -> None:
        if self._changing:
            self._changing.cancel()

    def _standing(self, spec: AdapterSpec, told: AdapterSeen | None) -> AdapterSeen:
        if spec.digest in self._faults:
            return AdapterSeen(spec.name, spec.digest, "failed", self._faults[spec.digest])
        return told if told and told.state != "leaving" else AdapterSeen(spec.name, spec.digest, "waiting")

    def _go_on(self) -> None:
        if not self._is_told and self._child is not None and (self._changing is None or self._changing.done()):
            self._changing = asyncio.create_task(self._change(), name="adapters")

    async def _change(self) -> None:
        """1. Files of who is new. 2. The child is told. 3. Files of who is gone. Again, while more has changed."""
        while not self._is_told and (child := self._child) is not None:
            self._is_told = True
            here = await self._bring()
            if child is not self._child:
                self._is_told = False
                continue
            try:
                await child.set_adapters([AdapterAt(one.name, one.digest) for one in here])
            except (OSError, TimeoutError) as error:
                log.warning("replica.adapters_not_told", error=str(error))
                child.kill("the process was ended because it did not listen to its supervisor")
                return
            await self._tidy()

    async def _bring(self) -> list[AdapterSpec]:
        here = []
        for spec in list(self._wanted):
            if spec.digest not in self._brought:
                fault = await asyncio.to_thread(_lay_out, spec, self._work / FOLDER, self._blobs)
                if fault:
                    log.warning("replica.adapter_not_brought", adapter=spec.label, why=fault)
                    self._faults[spec.digest] = fault
                    continue
                self._brought.add(spec.digest)
                self._faults.pop(spec.digest, None)
            here.append(spec)
        return here

    async def _tidy(self) -> None:
        gone = self._brought - {spec.digest for spec in self._wanted}
        self._brought -= gone
        for digest in gone:
            await asyncio.to_thread(remove, self._work / FOLDER / digest)


def _lay_out(spec: AdapterSpec, folder: Path, blobs: Path) -> str:
    """Copies the adapter's files to folder/DIGEST, hashing what it copies. Answers what is wrong, "" for nothing."""
    if not SHA256.fullmatch(spec.digest):
        return "its digest is no sha256"
    target = folder / spec.digest
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove(target)
        for file in spec.files:
            if fault := _copy(file, target, blobs):
                remove(target)
                return fault
    except OSError as error:
        remove(target)
        return f"its files cannot be brought to the replica: {error.strerror}"
    return ""


def _copy(file: FileRef, target: Path, blobs: Path) -> str:
    parts = PurePosixPath(file.path).parts
    if not SHA256.fullmatch(file.sha256) or not parts or {"/", "..", "."} & set(parts) or "\0" in file.path:
        return "one of its files has a name that cannot be taken"
    place = target.joinpath(*parts)
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    with os.fdopen(descriptor, "wb") as out, (blobs / file.sha256[:2] / file.sha256).open("rb") as source:
        while size <= file.size_bytes and (piece := source.read(PIECE_BYTES)):
            digest.update(piece)
            size += out.write(piece)
    if size != file.size_bytes or digest.hexdigest() != file.sha256:
        return f"artifact changed: {place.name} no longer has the content it was uploaded with"
    return ""
