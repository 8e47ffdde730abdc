"""From a planned model to versions: what is known by its digest is found again and not sent a second time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from inference.artifacts.manifest import Manifest, RuntimeSettings, digest_of
from inference.artifacts.triton.repository import Numbered, Part, RepositoryModel
from inference.protocol.supervision import FileRef
from serinus.control import Control, ControlError
from serinus.repository.planning import PIPELINE

READY, AWAITING = "ready", "awaiting_approval"
DEAD = {"rejected", "archived"}
VALIDATION_S = 900
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one version of the repository (triton 0: of the model as a whole).

    version: our number, None where there is none. state: "ready" (it can be served), "awaiting_approval", "rejected",
    "refused" (by what its config says), "failed". message: why, or what to know.
    """

    model: str
    triton: int
    version: int | None
    state: str
    message: str = ""

    @property
    def is_trouble(self) -> bool:
        """Whether somebody has to do something before it can be served."""
        return self.state in {"rejected", "refused", "failed"}


class Sender:
    """Makes versions through the control API."""

    def __init__(self, control: Control, say: Say) -> None:
        self._control = control
        self._say = say

    def versions(
        self, model: RepositoryModel, graphs: Mapping[int, bytes] | None = None, *, approve: bool = False
    ) -> list[Outcome]:
        """1. Sends each version that is not there. 2. Waits until all are validated, approved where allowed.

        graphs: number -> pipeline.json, for an ensemble. approve: also approve code, where the key's owner may do so
        alone. Trouble with one version is its outcome, not an error.
        """
        begun: list[Outcome] = []
        for numbered in model.versions:
            self._say(f"{model.name}: version {numbered.number}")
            try:
                begun.append(self._begun(model, numbered, graphs))
            except ControlError as error:
                begun.append(Outcome(model.name, numbered.number, None, "failed", _words(error)))
            except OSError as error:
                begun.append(Outcome(model.name, numbered.number, None, "failed", f"it cannot be read: {error}"))
        return [self._ended(one, model, approve=approve) for one in begun]

    def _begun(self, model: RepositoryModel, numbered: Numbered, graphs: Mapping[int, bytes] | None) -> Outcome:
        with TemporaryDirectory() as scratch:
            parts: Sequence[Part] = numbered.parts
            settings = model.translated.settings
            if graphs is not None:
                file = Path(scratch) / PIPELINE
                file.write_bytes(graphs[numbered.number])
                parts, settings = [Part(file, PIPELINE)], RuntimeSettings()
            refs = [_ref(part) for part in parts]
            known = self._known(model.name, digest_of(Manifest(refs, settings)))
            number = known or self._made(model.name, numbered.number, parts, refs, settings)
        said = "" if number == numbered.number else f"version {number} here: {numbered.number} was taken"
        if said and known:
            said = f"version {number} here has the same content"
        return Outcome(model.name, numbered.number, number, "sent", said)

    def _known(self, name: str, digest: str) -> int | None:
        """The living version with this content, if there is one."""
        with suppress(_NotThere):
            for row in self._rows(name):
                if row["digest"] == digest and row["status"] not in DEAD:
                    return int(row["number"])
        return None

    def _rows(self, name: str) -> list[dict[str, Any]]:
        try:
            return self._control.patiently(lambda: list(self._control.pages(f"/api/models/{name}/versions/")))
        except ControlError as error:
            if error.code == "not_found":
                raise _NotThere from error
            raise

    def _made(
        self, name: str, wanted: int, parts: Sequence[Part], refs: Sequence[FileRef], settings: RuntimeSettings
    ) -> int:
        asked = {"sha256": [ref.sha256 for ref in refs]}
        there = set(self._control.patiently(lambda: self._control.call("POST", "/api/blobs/check/", asked))["present"])
        files: list[dict[str, str]] = []
        for part, ref in zip(parts, refs, strict=True):
            content = (
                {"sha256": ref.sha256}
                if ref.sha256 in there
                else {"upload": self._control.upload(part.file, part.path, lambda _: None)}
            )
            files.append({"path": part.path, **content})
        body: dict[str, Any] = {"files": files, "runtime": msgspec.to_builtins(settings)}
        try:
            made = self._post(name, body | {"number": wanted})
        except ControlError as error:
            if error.code != "conflict" or "cannot be given any more" not in str(error):
                raise
            made = self._post(name, body)
        return int(made["number"])

    def _post(self, name: str, body: dict[str, Any]) -> Any:
        path = f"/api/models/{name}/versions/"
        return self._control.patiently(lambda: self._control.call("POST", path, body), twice=False)

    def _ended(self, sent: Outcome, model: RepositoryModel, *, approve: bool) -> Outcome:
        if sent.version is None:
            return sent
        try:
            row = self._control.wait_version(model.name, sent.version, lambda _: None, VALIDATION_S)
            if row["status"] == AWAITING and approve:
                path = f"/api/models/{model.name}/versions/{sent.version}/approve/"
                self._control.call("POST", path, {"reason": "imported with the approval of who runs Serinus"})
                row = self._control.wait_version(model.name, sent.version, lambda _: None, VALIDATION_S)
        except ControlError as error:
            return _with(sent, "failed", _words(error))
        if row["status"] == AWAITING:
            way = f"it is code: `serinus approve {model.name} {sent.version}`, by a second person, then import or load it again"
            return _with(sent, AWAITING, way)
        if row["status"] != READY:
            return _with(sent, row["status"], " ".join(filter(None, (row["reason"], row["remedy"]))))
        return _with(sent, READY, "; ".join(filter(None, (sent.message, *model.translated.notes))))


class _NotThere(Exception):
    """There is no such model yet."""


def _ref(part: Part) -> FileRef:
    mark, size = hashlib.sha256(), 0
    with part.file.open("rb") as source:
        while block := source.read(1 << 20):
            mark.update(block)
            size += len(block)
    return FileRef(part.path, size, mark.hexdigest())


def _with(sent: Outcome, state: str, message: str) -> Outcome:
    return Outcome(sent.model, sent.triton, sent.version, state, message)


def _words(error: ControlError) -> str:
    return f"{error}: {error.remedy}" if error.remedy else str(error)
