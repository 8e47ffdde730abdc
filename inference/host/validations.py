"""Validation runs: one at a time, each in a child that may crash, hang or eat memory without harm to anybody else.

Whatever becomes of the child, the run gets a verdict in words. `lease` is the run's fencing token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from inference.config import BadSetting
from inference.errors import NotReady, Rejected
from inference.host import adopt
from inference.host import folders as places
from inference.host.child import Child
from inference.host.exits import Exit, size_words
from inference.host.processes import resident_bytes
from inference.host.replica import Ground
from inference.protocol.child import CheckReport, ChildPaths, FromChild, StartValidation, ValidationReport
from inference.protocol.supervision import CheckSeen, ValidationSeen, ValidationSpec

log = structlog.get_logger()
FINAL = frozenset({"ready", "rejected", "lost"})
MEMORY_FLOOR_BYTES = 2 << 30
MEMORY_FACTOR = 4
MAX_CHECKS = 64
MAX_TRIES = 3
LAST_SECONDS = 5.0


def memory_limit_bytes(spec: ValidationSpec) -> int:
    """The larger of 2 GiB and four times the artifact."""
    return max(MEMORY_FLOOR_BYTES, MEMORY_FACTOR * sum(file.size_bytes for file in spec.files))


def merge(seen: ValidationSeen, report: FromChild) -> ValidationSeen:
    """`seen` with what the child now says; the run and its lease are never the child's to choose."""
    if isinstance(report, CheckReport):
        checks = [check for check in seen.checks if check.name != report.check.name]
        at = next((i for i, check in enumerate(seen.checks) if check.name == report.check.name), len(checks))
        return msgspec.structs.replace(seen, checks=[*checks[:at], report.check, *checks[at:]][:MAX_CHECKS])
    if isinstance(report, ValidationReport):
        told = report.seen
        return msgspec.structs.replace(
            told,
            run=seen.run,
            lease=seen.lease,
            state=told.state if told.state in {"running", "ready", "rejected"} else "rejected",
            checks=(told.checks or seen.checks)[:MAX_CHECKS],
        )
    return seen


def reject(seen: ValidationSeen, reason: str, remedy: str) -> ValidationSeen:
    """`seen` as a rejection; the line of the checklist that was under way is the one that failed."""
    checks = [
        CheckSeen(check.name, "failed", reason, remedy, check.ms) if check.state == "running" else check
        for check in seen.checks
    ]
    return msgspec.structs.replace(seen, state="rejected", checks=checks, reason=reason, remedy=remedy, converted=[])


def remedy_for(ended: Exit) -> str:
    """The way out of a validation that ended like this."""
    if "memory" in ended.cause or ended.status == -9:
        return "use a smaller model or batch size, or a host with more memory"
    if "longer than" in ended.cause:
        return "make loading and one forward pass faster, or raise SERINUS_VALIDATION_TIMEOUT_S"
    return "load the model on your own machine first; its log is on the host under logs/"


@dataclass(slots=True)
class Run:
    spec: ValidationSpec
    seen: ValidationSeen
    tries: int = 0
    delivered: bool = False

    @property
    def is_final(self) -> bool:
        return self.seen.state in FINAL


class Validations:
    """The queue of runs and their results. Results stay until they were delivered and are named no more."""

    def __init__(self, ground: Ground, changed: Callable[[], None]) -> None:
        self._ground = ground
        self._changed = changed
        self._runs: dict[str, Run] = {}
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._child: Child | None = None
        self._current = ""
        self._limit_bytes = 0
        self._until = 0.0

    def start(self) -> None:
        self._task = asyncio.create_task(self._loop(), name="validations")

    async def stop(self) -> None:
        if self._child:
            self._child.kill("the supervisor is stopping")
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def converge(self, specs: Iterable[ValidationSpec]) -> None:
        """Take up what is new, drop what waits or is delivered and is named no more. A run under way is finished."""
        named = {spec.run: spec for spec in specs}
        for name, run in list(self._runs.items()):
            if name not in named and (run.delivered if run.is_final else name != self._current):
                del self._runs[name]
        for name, spec in named.items():
            held = self._runs.get(name)
            if held is None or held.spec.lease < spec.lease:
                if name == self._current and self._child:
                    self._child.kill("another lease took the run over")
                self._runs[name] = Run(spec, ValidationSeen(run=name, lease=spec.lease, state="running"))
        self._work.set()

    def seen(self) -> list[ValidationSeen]:
        return [run.seen for run in self._runs.values()]

    def mark_delivered(self) -> None:
        for run in self._runs.values():
            run.delivered = run.delivered or run.is_final

    def check(self, now_s: float, blind_s: float) -> None:
        """The watchdog."""
        self._until += blind_s
        if self._child is None:
            return
        if now_s > self._until:
            limit_s = self._ground.config.validation_timeout_s
            self._child.kill(f"the process was ended because validation took longer than {limit_s} s")
        elif self._child.resident_bytes() > self._limit_bytes + resident_bytes(self._ground.server.pid):
            self._child.kill(
                f"the process was ended because it used more than {size_words(self._limit_bytes)} of memory"
            )

    async def _loop(self) -> None:
        while True:
            self._work.clear()
            run = next((run for run in self._runs.values() if not run.is_final), None)
            if run is None:
                await self._work.wait()
                continue
            run.tries += 1
            self._current = run.spec.run
            try:
                await self._validate(run)
            except (OSError, BadSetting, NotReady) as error:
                log.warning("validation.not_run", run=run.spec.run, error=str(error))
                self._lose(run, f"this host could not run the validation: {error}")
                await asyncio.sleep(1.0)
            self._current = ""
            self._changed()

    def _lose(self, run: Run, reason: str) -> None:
        if run.tries >= MAX_TRIES:
            run.seen = msgspec.structs.replace(run.seen, state="lost", reason=reason, remedy="validate it again")

    async def _validate(self, run: Run) -> None:
        """One child for one run. 1. fork  2. hear it  3. its end  4. adopt what it made  5. remove its folder"""
        work = self._ground.folders.new_work(run.spec.run)
        out = work / "out"
        try:
            paths = ChildPaths(artifacts_dir=str(self._ground.folders.artifacts), work_dir=str(work))
            child = await Child.fork(self._ground.server, StartValidation(run.spec, paths))
            self._limit_bytes = memory_limit_bytes(run.spec)
            self._until = self._ground.clock() + self._ground.config.validation_timeout_s
            self._child = child
            told = await self._hear(run, child)
            ended = await child.exit()
            await self._conclude(run, told, ended, out)
        finally:
            self._child = None
            await asyncio.to_thread(places.remove, work)

    async def _hear(self, run: Run, child: Child) -> ValidationSeen:
        """What the child said last; a final state is shown only when its end is known."""
        told = run.seen
        async for report in child.reports():
            told = merge(told, report)
            if told.state == "running":
                run.seen = told
            else:
                run.seen = msgspec.structs.replace(run.seen, checks=told.checks)
                self._until = min(self._until, self._ground.clock() + LAST_SECONDS)
        return told

    async def _conclude(self, run: Run, told: ValidationSeen, ended: Exit, out: Path) -> None:
        if told.state == "ready":
            try:
                await asyncio.to_thread(adopt.adopt, told.converted, out, self._ground.folders.artifacts)
            except Rejected as error:
                told = reject(told, error.reason, error.remedy)
            run.seen = told
        elif told.state == "rejected":
            run.seen = told
        elif ended.status is None and not ended.cause:
            self._lose(run, "the fork server of this host ended during the validation")
        else:
            run.seen = reject(told, ended.words, remedy_for(ended))
        log.info("validation.ended", run=run.spec.run, state=run.seen.state, reason=run.seen.reason)
