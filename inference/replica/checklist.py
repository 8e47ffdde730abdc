"""The checklist of one validation, reported line by line as it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from inference.errors import OutOfMemory, Rejected, SerinusError
from inference.protocol.child import ValidationReport
from inference.protocol.supervision import CheckSeen, ValidationSeen, ValidationSpec
from inference.replica.control import Control

STEPS = ("files", "parse", "convert", "load", "signature", "warm-up", "latency")
CONVERSION_STEPS = STEPS[:3]


class Step:
    """The line under way; what is said by `note` stands beside it when it has passed."""

    def __init__(self) -> None:
        self.message = ""
        self.is_skipped = False

    def note(self, message: str) -> None:
        self.message = message

    def skip(self, message: str) -> None:
        self.message, self.is_skipped = message, True


class Checklist:
    """Sends the whole ValidationSeen at every change, so that a lost report changes nothing."""

    def __init__(self, spec: ValidationSpec, control: Control) -> None:
        self._control = control
        self._steps = CONVERSION_STEPS if spec.purpose == "convert" else STEPS
        self._checks = [CheckSeen(name, "waiting") for name in self._steps]
        self.seen = ValidationSeen(run=spec.run, lease=spec.lease, state="running", tier=spec.tier)

    def learn(self, **facts: Any) -> None:
        """Adds what is known by now: format, tier, signature, ..."""
        self.seen = msgspec.structs.replace(self.seen, **facts)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """A line of the checklist; it fails with what is raised inside."""
        began, step = time.perf_counter(), Step()
        self._put(CheckSeen(name, "running"))
        self._tell()
        try:
            yield step
        except BaseException as error:
            reason, remedy = told(error)
            self._put(CheckSeen(name, "failed", reason, remedy, _ms(began)))
            raise
        self._put(CheckSeen(name, "skipped" if step.is_skipped else "passed", step.message, "", _ms(began)))
        self._tell()

    def ready(self) -> None:
        self.learn(state="ready")
        self._tell()

    def reject(self, error: BaseException) -> None:
        """The verdict, in the words of `error`."""
        reason, remedy = told(error)
        self.learn(state="rejected", reason=reason, remedy=remedy)
        self._skip_rest()
        self._tell()

    def hold(self, reason: str, remedy: str) -> None:
        """Nothing failed, but nothing of it may run before a person says so."""
        self.learn(state="rejected", reason=reason, remedy=remedy)
        self._skip_rest()
        self._tell()

    def _skip_rest(self) -> None:
        self._checks = [
            CheckSeen(check.name, "skipped") if check.state == "waiting" else check for check in self._checks
        ]

    def _put(self, check: CheckSeen) -> None:
        self._checks[self._steps.index(check.name)] = check

    def _tell(self) -> None:
        shown = [check for check in self._checks if check.state != "waiting"]
        self.learn(checks=shown)
        self._control.tell(ValidationReport(self.seen))


def told(error: BaseException) -> tuple[str, str]:
    """(reason, remedy) for a person."""
    if isinstance(error, Rejected):
        return error.reason, error.remedy
    if isinstance(error, OutOfMemory | MemoryError):
        return (
            "the model needs more memory than validation gives (the larger of 2 GiB and 4 times the artifact)",
            "use a smaller model, smaller weights (float16) or a smaller max_batch_size",
        )
    if isinstance(error, SerinusError):
        return error.message, ""
    return (
        f"it failed with {type(error).__name__}: {first_line(error)}",
        "load the file on your own machine with the same versions of the libraries first",
    )


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"


def _ms(began: float) -> float:
    return round((time.perf_counter() - began) * 1e3, 3)
