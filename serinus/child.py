"""Starts a program that dies with its parent: `python child.py SIGNAL UNSET,NAMES PROGRAM ARGS...`.

A process supervisor that is killed runs no clean-up, so each child asks the kernel for a signal at that moment
(prctl PR_SET_PDEATHSIG). Run as a plain script: it imports next to nothing, so that it costs milliseconds.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> None:
    number, unset, command = int(signal.Signals[words[0]]), words[1], words[2:]
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        sys.exit("the parent died before this program started")
    environment = {name: value for name, value in os.environ.items() if name not in unset.split(",")}
    os.execvpe(command[0], command, environment)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
