"""The one rule for the paths of an artifact's files: relative, normalised, plain, and distinct on every file system."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import NoReturn

from inference.errors import Rejected

MAX_PATH_BYTES = 512
MAX_PART_BYTES = 200
MAX_DEPTH = 16
REMEDY = "Rename the file: use a relative path of plain names such as 'weights/model.safetensors'."


def member_path(text: str) -> str:
    """`text` itself when it may be the path of an artifact's file. Raises Rejected, never changes the path."""
    if not text or len(text.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        _refuse(text, f"is empty or longer than {MAX_PATH_BYTES} bytes")
    if any(not character.isprintable() for character in text):
        _refuse(text, "holds a character that cannot be printed")
    if "\\" in text or ":" in text:
        _refuse(text, "holds a backslash or a colon")
    if text.startswith("/"):
        _refuse(text, "is absolute")
    parts = text.split("/")
    if len(parts) > MAX_DEPTH:
        _refuse(text, f"is deeper than {MAX_DEPTH} folders")
    for part in parts:
        _check_part(text, part)
    if unicodedata.normalize("NFC", text) != text:
        _refuse(text, "is not in Unicode's composed form (NFC)")
    return text


def _check_part(text: str, part: str) -> None:
    if part in {"", ".", ".."}:
        _refuse(text, "is not normalised: it holds an empty part, '.' or '..'")
    if len(part.encode()) > MAX_PART_BYTES:
        _refuse(text, f"holds a name longer than {MAX_PART_BYTES} bytes")
    if part != part.strip() or part.endswith("."):
        _refuse(text, "holds a name that begins or ends with a space, or ends with a dot")


def check_paths(paths: Iterable[str]) -> list[str]:
    """All of them by `member_path`, and no two of them the same file on a file system that ignores case.

    A path that is also the folder of another one is refused too. Raises Rejected.
    """
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        key = member_path(path).casefold()
        if key in seen:
            _refuse(path, f"is there twice (as {shown(seen[key])})")
        seen[key] = path
        parts = key.split("/")
        for depth in range(1, len(parts)):
            folders["/".join(parts[:depth])] = path
    for key, path in seen.items():
        if key in folders:
            _refuse(path, "is both a file and a folder")
    return list(seen.values())


def strip_top(paths: Iterable[str]) -> str:
    """The single folder that holds all of `paths`, with its slash; "" when there is none. People zip folders."""
    listed = list(paths)
    tops = {path.split("/", 1)[0] for path in listed}
    if len(tops) != 1 or any("/" not in path for path in listed):
        return ""
    return tops.pop() + "/"


def shown(text: str, limit: int = 80) -> str:
    """A foreign string as one may put it into a message: quoted, escaped, cut."""
    quoted = ascii(text)
    return quoted if len(quoted) <= limit else quoted[: limit - 4] + "...'"


def _refuse(text: str, why: str) -> NoReturn:
    raise Rejected(f"the path {shown(text)} {why}", remedy=REMEDY, check="paths")
