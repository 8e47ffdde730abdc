"""Follows the folder of `serinus up --model-repository`, as a process beside the others.

none: everything is imported once. poll: what is new or changed is imported as it appears, what vanished is taken away.
explicit: only what is asked for, at the start or by a load. Whatever waits for an approval is tried again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from inference import config as engine
from inference.artifacts.triton import config as configs
from inference.artifacts.triton import repository
from inference.config import BadSetting
from inference.errors import Rejected
from serinus.control import Control, ControlError, credentials
from serinus.paths import MODES, write_private
from serinus.repository.importing import Importer
from serinus.repository.planning import plan
from serinus.repository.sending import AWAITING, Outcome
from serinus.repository.serving import remove

log = logging.getLogger(__name__)
ALL = "*"
EXPLICIT_STEP_S = 0.5
SETTLE_S, SETTLE_TRIES = 0.5, 20
MAX_FILES = 20_000


@dataclass(frozen=True, slots=True)
class FolderConfig:
    """What the process reads from its environment."""

    root: Path
    mode: str
    load: tuple[str, ...]
    poll_s: int
    approve: bool
    memory: Path


def folder_config(env: Mapping[str, str] = os.environ) -> FolderConfig:
    """Raises BadSetting with the variable's name."""
    mode = env.get("SERINUS_MODEL_CONTROL_MODE") or MODES[0]
    if mode not in MODES:
        raise BadSetting(f"SERINUS_MODEL_CONTROL_MODE={mode!r}: must be one of {', '.join(MODES)}")
    return FolderConfig(
        root=Path(env.get("SERINUS_MODEL_REPOSITORY", "")),
        mode=mode,
        load=tuple(filter(None, env.get("SERINUS_LOAD_MODELS", "").split(","))),
        poll_s=engine.integer(env, "SERINUS_REPOSITORY_POLL_S", 15, 1, 86400),
        approve=engine.flag(env, "SERINUS_LONE_ADMIN_APPROVES"),
        memory=engine.data_dir(env) / "repository.json",
    )


def marks_of(root: Path) -> dict[str, str]:
    """Model -> a mark that changes with any of its files. Raises Rejected for no folder."""
    return {name: _mark(root / name) for name in repository.names(root)}


def _mark(folder: Path) -> str:
    mark = hashlib.sha256()
    for count, path in enumerate(sorted(folder.rglob("*"))):
        if count > MAX_FILES:
            break
        try:
            facts = path.stat()
        except OSError:
            continue  # it vanished between two looks; the next one sees that
        if not path.is_dir():
            mark.update(f"{path.relative_to(folder)}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return mark.hexdigest()


def settled(root: Path) -> dict[str, str]:
    """The marks, once they were the same at two looks: nobody is copying a model in just now."""
    before = marks_of(root)
    for _ in range(SETTLE_TRIES):
        time.sleep(SETTLE_S)
        now = marks_of(root)
        if now == before:
            break
        before = now
    return before


def to_import(
    before: Mapping[str, str], now: Mapping[str, str], pending: Iterable[str], uses: Mapping[str, set[str]]
) -> list[str]:
    """Models that are new, changed or pending, and the ensembles that use one of them. uses: ensemble -> its steps."""
    found = {name for name, mark in now.items() if before.get(name) != mark} | (set(pending) & set(now))
    while more := {name for name, steps in uses.items() if steps & found} - found:
        found |= more
    return sorted(found & set(now))


class Follower:
    """One folder and the platform. It takes away only what it has itself imported, and remembers that on disk."""

    def __init__(self, control: Control, config: FolderConfig) -> None:
        self._control = control
        self._config = config
        self._importer = Importer(control, config.root, log.info, approve=config.approve)
        self._marks: dict[str, str] = {}
        self._pending: set[str] = set()
        self._configs: dict[str, str] = {}
        self._managed = self._remembered()

    def run(self) -> None:
        """For ever. Trouble with one pass is logged, and the next one tries again."""
        start = {"explicit": self._start_explicit}.get(self._config.mode, self.look)
        step_s = EXPLICIT_STEP_S if self._config.mode == "explicit" else self._config.poll_s
        act = {"none": self._retry, "poll": self.look, "explicit": self.answer}[self._config.mode]
        self._safely(start)
        while True:
            time.sleep(step_s)
            self._safely(act)

    def look(self) -> list[Outcome]:
        """1. What changed? 2. Imports it. 3. Takes away what vanished."""
        root = self._config.root
        now = marks_of(root)
        if now != self._marks:
            now = settled(root)
        wanted = to_import(self._marks, now, self._pending, self._uses())
        outcomes = self._imported(wanted) if wanted else []
        for name in sorted(self._managed - set(now)):
            log.info("%s vanished from the folder: its endpoint is taken away", name)
            remove(self._control, name)
            self._managed.discard(name)
        self._marks = now
        self._remember()
        return outcomes

    def answer(self) -> None:
        """Carries out the loads that were asked for."""
        for row in self._listed():
            if row["asked"] > row["done"]:
                self._tell(row["name"], row["asked"], self._load(row["name"]))

    def _listed(self) -> list[dict[str, Any]]:
        """Tells what lies in the folder, and hears what was asked for of it."""
        names = [name for name in repository.names(self._config.root) if repository.NAME.fullmatch(name)]
        rows: list[dict[str, Any]] = self._control.call("PUT", "/api/repository/", {"models": names})
        self._configs = {row["name"]: row["config"] for row in rows if row["config"]}
        return rows

    @contextmanager
    def _overrides(self) -> Iterator[dict[str, Path]]:
        """The configurations that loads gave, as files. Raises Rejected."""
        with TemporaryDirectory(prefix="serinus-configs-") as scratch:
            found = {}
            for name, config in self._configs.items():
                found[name] = Path(scratch) / f"{name}.pbtxt"
                found[name].write_text(configs.text_of(config))
            yield found

    def _tell(self, name: str, load: int, reason: str) -> None:
        body = {"load": load, "reason": reason[:1000]}
        self._control.patiently(lambda: self._control.call("POST", f"/api/repository/{name}/answer/", body))

    def _load(self, name: str) -> str:
        """Why it failed, "" when it did not."""
        try:
            outcomes = [one for one in self._imported([name]) if one.model == name]
        except (ControlError, Rejected, OSError) as error:
            return str(error)
        bad = next((one for one in outcomes if one.is_trouble or one.state == AWAITING), None)
        return f"version {bad.triton}: {bad.message}" if bad and bad.triton else bad.message if bad else ""

    def _start_explicit(self) -> None:
        self._listed()  # a load's own config outlives this process
        wanted = list(self._config.load)
        if ALL in wanted:
            wanted = repository.names(self._config.root)
        if wanted:
            self._imported(wanted)
        self.answer()

    def _retry(self) -> None:
        if self._pending:
            self._imported(sorted(self._pending))

    def _imported(self, wanted: list[str]) -> list[Outcome]:
        with self._overrides() as overrides:
            outcomes = self._importer.run(wanted, overrides)
        for one in outcomes:
            told = log.warning if one.is_trouble else log.info
            told("%s, version %s: %s %s", one.model, one.triton or "-", one.state, one.message)
        self._pending -= set(wanted)
        self._pending |= {one.model for one in outcomes if one.state in {AWAITING, "failed"}}
        self._managed |= {one.model for one in outcomes if one.version is not None}
        self._remember()
        return outcomes

    def _uses(self) -> dict[str, set[str]]:
        planned = plan(self._config.root)
        return {m.name: {s.model for s in m.translated.steps} for m in planned.models if m.translated.steps}

    def _safely(self, act: Any) -> None:
        try:
            act()
        except (ControlError, Rejected, OSError) as error:
            log.warning("%s", error)

    def _remembered(self) -> set[str]:
        try:
            return set(json.loads(self._config.memory.read_text())["imported"])
        except (OSError, ValueError, KeyError, TypeError):
            return set()

    def _remember(self) -> None:
        write_private(self._config.memory, json.dumps({"imported": sorted(self._managed)}))


def main() -> None:
    """Runs until it is stopped. Raises BadSetting."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config = folder_config()
    control = Control(url=os.environ.get("SERINUS_CONSOLE_URL"), key=credentials().get("api_key"))
    Follower(control, config).run()
