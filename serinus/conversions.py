"""Converting a rejected torch pickle from the command line: ask, wait, fetch."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from serinus.control import Control, ControlError

FINAL = {"done", "failed"}


def convert_weights(control: Control, name: str, number: int, timeout_s: float) -> dict[str, Any]:
    """Asks for the conversion unless it was asked for before, and waits for its end: state "done" or "failed".

    Raises ControlError where there is nothing to convert, or it takes longer than `timeout_s`.
    """
    place = f"/api/models/{name}/versions/{number}/"
    held = control.call("GET", place)["conversion"]
    if held is None or held["state"] in {"offered", "failed"}:
        held = control.call("POST", f"{place}convert/", {})["conversion"]
    end = time.monotonic() + timeout_s
    while held["state"] not in FINAL:
        if time.monotonic() > end:
            raise ControlError(f"the conversion of {name}:{number} is still {held['state']} after {timeout_s:.0f} s")
        time.sleep(0.25)
        held = control.patiently(lambda: control.call("GET", place))["conversion"]
    return dict(held)


def fetch_converted(control: Control, name: str, number: int, out: Path) -> None:
    """Writes the converted file to `out`, in one step and only when its sha256 is the one that the server names."""
    partial, digest = out.with_name(out.name + ".part"), hashlib.sha256()
    try:
        with control.stream(f"/api/models/{name}/versions/{number}/converted/") as answer, partial.open("wb") as target:
            for piece in answer.iter_bytes():
                digest.update(piece)
                target.write(piece)
        if digest.hexdigest() != answer.headers["ETag"].strip('"'):
            raise ControlError("the file did not arrive as the server has it: try again", code="checksum")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
