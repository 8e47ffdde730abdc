"""Python packages: a folder with serinus_model.py that defines load(folder). Tier CODE: nothing of it runs here."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NoReturn

from inference.errors import Rejected

ENTRY = "serinus_model.py"
MAX_BYTES = 1 << 20
NOTE = "Python packages are code: they need the right to upload code and a second person's approval."
REMEDY = (
    "serinus_model.py defines `def load(folder)`, which answers an object with `predict(inputs)`: a dict of NumPy "
    "arrays in, a dict of NumPy arrays out."
)


def check(folder: Path) -> list[str]:
    """Notes. Raises Rejected when the file is no Python or defines no load(folder)."""
    path = folder / ENTRY
    if path.stat().st_size > MAX_BYTES:
        _refuse(f"{ENTRY} is larger than {MAX_BYTES} bytes")
    try:
        tree = ast.parse(path.read_bytes(), filename=ENTRY)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        _refuse(f"{ENTRY} is not valid Python")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "load":
            return [NOTE]
    raise Rejected(f"{ENTRY} defines no function load(folder)", remedy=REMEDY)


def _refuse(reason: str) -> NoReturn:
    raise Rejected(reason, remedy=REMEDY)
