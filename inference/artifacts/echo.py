"""The echo model: a folder with echo.json. What it may hold is the loader's to say; here it must only be bounded JSON."""

from __future__ import annotations

from pathlib import Path

from inference.artifacts import jsons

ENTRY = "echo.json"
MAX_BYTES = 64 << 10


def check(path: Path) -> None:
    """Raises Rejected when it is no JSON object of at most 64 KiB."""
    jsons.read(path, MAX_BYTES, remedy="See the documentation of the echo model; '{}' is enough.")
