"""Models for Triton's Python backend: recognised by their class, never run here. Tier CODE."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

CLASS = "TritonPythonModel"
NOTE = "Triton's Python models are code: they need the right to upload code and a second person's approval."
MAX_BYTES = 1 << 20
_PLACE = re.compile(r"([0-9]{1,9}/)?[A-Za-z_]\w*\.py")


def find(folder: Path, paths: Iterable[str] | None = None) -> str | None:
    """The one Python file at the top or in a numbered folder that defines the class; model.py goes first."""
    if paths is None:
        paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    places = sorted(
        (path for path in paths if _PLACE.fullmatch(path)), key=lambda path: (not path.endswith("model.py"), path)
    )
    return next((path for path in places if _defines(folder / path)), None)


def _defines(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        return False
    try:
        tree = ast.parse(path.read_bytes(), filename=path.name)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, ast.ClassDef) and node.name == CLASS for node in tree.body)
