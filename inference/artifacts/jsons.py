"""JSON from strangers: bounded in bytes, without duplicate keys, without NaN; every failure is a Rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from inference.artifacts.paths import shown
from inference.errors import Rejected


class _Duplicate(ValueError):
    pass


class _Constant(ValueError):
    pass


def parse(data: bytes, what: str, *, remedy: str = "Export the model again.", check: str = "parse") -> Any:
    """The value of a JSON text in UTF-8. `what` names the text in the message."""

    def refuse(why: str) -> NoReturn:
        raise Rejected(f"{what} {why}", remedy=remedy, check=check)

    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except _Duplicate as error:
        refuse(f"holds the key {shown(str(error))} twice")
    except _Constant:
        refuse("holds NaN or Infinity")
    except RecursionError:
        refuse("is nested too deep")
    except ValueError:
        refuse("is not valid JSON")


def read(path: Path, limit_bytes: int, *, remedy: str = "Export the model again.") -> dict[str, Any]:
    """A JSON object from a file of at most `limit_bytes`."""
    if path.stat().st_size > limit_bytes:
        raise Rejected(f"{path.name} is larger than {limit_bytes} bytes", remedy=remedy)
    value = parse(path.read_bytes(), path.name, remedy=remedy)
    if not isinstance(value, dict):
        raise Rejected(f"{path.name} is no JSON object", remedy=remedy)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Duplicate(key)
            seen.add(key)
    return value


def _no_constant(name: str) -> NoReturn:
    raise _Constant(name)
