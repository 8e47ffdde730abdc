"""The folder a child works in, laid out before its sandbox closes, and the sandbox around it.

WORK/artifact: links to the version's blobs, read-only. WORK/scratch: home and temporary files. WORK/out: what a
conversion makes. WORK/served: the artifact with what was converted in the place of the original. WORK/adapters/DIGEST:
files of a LoRA adapter, which the supervisor brings there, while this process runs too, and only it may write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.artifacts.store import Store
from inference.protocol.child import ChildPaths
from inference.protocol.supervision import FileRef
from inference.replica import sandbox
from inference.replica.sandbox import Limits, Plan, Walls


@dataclass(frozen=True, slots=True)
class Ground:
    """Folders of one child, and the store that its artifact comes from."""

    work: Path
    store: Store
    files: tuple[FileRef, ...]

    @property
    def artifact(self) -> Path:
        return self.work / "artifact"

    @property
    def scratch(self) -> Path:
        return self.work / "scratch"

    @property
    def out(self) -> Path:
        return self.work / "out"

    @property
    def served(self) -> Path:
        return self.work / "served"

    @property
    def adapters(self) -> Path:
        return self.work / "adapters"

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    def verify(self) -> None:
        """Compares every file's sha256. Raises Rejected when one has changed."""
        self.store.verify(self.files, self.artifact)

    def enter(self, *, device: str, limits: Limits, keep: tuple[int, ...], writes_out: bool = False) -> Walls:
        """Closes the sandbox around this process; only the scratch folder (and the one for conversions) is writable."""
        readable = (self.artifact, self.served, self.adapters, *self.store.targets(self.files))
        also = (self.out,) if writes_out else ()
        plan = Plan(self.scratch, readable, keep, device=device, limits=limits, also_writable=also)
        return sandbox.enter(plan)


def lay_out(paths: ChildPaths, files: Sequence[FileRef]) -> Ground:
    """Makes the folders and links. Raises Rejected, NotFound or OSError."""
    ground = Ground(Path(paths.work_dir).resolve(), Store(Path(paths.artifacts_dir).resolve()), tuple(files))
    for folder in (ground.artifact, ground.scratch, ground.out, ground.served, ground.adapters):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ground.store.lay_out(files, ground.artifact)
    return ground
