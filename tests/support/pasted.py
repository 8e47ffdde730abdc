"""Runs what the console offers to copy, as a person would who pastes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys


def _run(command: list[str], key: str) -> str:
    environment = os.environ | {"SERINUS_API_KEY": key}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout


def run_curl(line: str, key: str) -> str:
    """The text that a streamed chat's events add up to."""
    events = [one.removeprefix("data: ") for one in _run(["bash", "-c", line], key).split("\n\n") if one]
    assert events.pop() == "[DONE]", events
    return "".join(json.loads(one)["choices"][0]["delta"].get("content") or "" for one in events)


def run_python(program: str, key: str) -> str:
    """What the program prints."""
    return _run([sys.executable, "-W", "error::SyntaxWarning", "-c", program], key)
