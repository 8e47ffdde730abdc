"""How a process ended, in words that a person understands."""

from __future__ import annotations

import signal
from dataclasses import dataclass

MEANINGS = {
    signal.SIGKILL: "it was killed by hand, or by the kernel because memory ran out",
    signal.SIGSEGV: "it touched memory that is not its own",
    signal.SIGABRT: "a library in it gave up",
    signal.SIGBUS: "it touched memory that is not there",
    signal.SIGFPE: "an arithmetic error",
    signal.SIGILL: "an instruction that this processor does not have",
    signal.SIGSYS: "it tried a system call that the sandbox forbids",
    signal.SIGXCPU: "it used up its CPU time",
    signal.SIGXFSZ: "it wrote a larger file than it may",
    signal.SIGALRM: "a forward pass did not come to an end",
    signal.SIGTERM: "it was asked to stop",
}


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a child. status: exit code, minus the signal's number, or None when the fork server died with it.

    cause: why the supervisor itself ended it ("" when it did not).
    """

    status: int | None
    cause: str = ""

    @property
    def words(self) -> str:
        return self.cause or status_words(self.status)


def status_words(status: int | None) -> str:
    """One sentence without a full stop, starting with 'the process'."""
    if status is None:
        return "the process ended together with its fork server"
    if status >= 0:
        return f"the process ended with exit code {status}"
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"the process was ended by signal {-status}"
    meaning = MEANINGS.get(number)
    return f"the process was ended by {number.name}" + (f" ({meaning})" if meaning else "")


def size_words(size_bytes: int) -> str:
    """'2.0 GiB', '512 MiB': a size as a person reads it."""
    if size_bytes >= 1 << 30:
        return f"{size_bytes / (1 << 30):.1f} GiB"
    return f"{size_bytes / (1 << 20):.0f} MiB"
