"""Recognising pickles and their relatives by magic and member names. Nothing here is ever unpickled."""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path

from inference.artifacts.paths import shown
from inference.artifacts.zips import open_zip, read_member
from inference.errors import Rejected

# torch.save before 1.6 begins with this number as a pickled integer (0x1950a86a20f9469cfc6c).
LEGACY_TORCH = bytes.fromhex("8a0a6cfc9c46f9206aa850192e")
MAX_ENTRIES = 1 << 16
MAX_PICKLE_BYTES = 16 << 20
# What torch.save writes for tensors comes from these; weights_only loading knows little more.
_TENSOR_MODULES = {"torch", "torch._utils", "torch.serialization", "torch.storage", "torch._tensor", "collections"}


def is_pickle(head: bytes) -> bool:
    """A pickle of protocol 2 to 5, or one of protocol 0 or 1 that names a global."""
    if len(head) > 2 and head[0] == 0x80 and head[1] in range(2, 6):
        return True
    return head[:1] in {b"(", b"]", b"}", b"c"} and (b"\nR" in head or b"\n(" in head or b"cposix" in head)


def is_legacy_torch(head: bytes) -> bool:
    """Written by torch.save in the form it had before version 1.6."""
    return head[:2] == b"\x80\x02" and head[2:].startswith(LEGACY_TORCH)


def members(path: Path) -> list[str]:
    """Names inside a zip file, without the root folder that torch puts around them. Raises Rejected."""
    with open_zip(path, entries=MAX_ENTRIES) as archive:
        return [name.split("/", 1)[-1] for name in archive.namelist()]


def is_torchscript(names: list[str]) -> bool:
    """A zip with code for the TorchScript interpreter."""
    return "constants.pkl" in names and any(name.startswith("code/") for name in names)


def is_torch_zip(names: list[str]) -> bool:
    """A zip as torch.save writes it: one pickle and its tensors."""
    return "data.pkl" in names and not is_torchscript(names)


def check_weights(path: Path, name: str, remedy: str) -> None:
    """Raises Rejected unless `path` is a torch pickle that names nothing but what tensors need."""
    with path.open("rb") as source:
        head = source.read(512)
    if head.startswith(b"PK") and is_torch_zip(members(path)):
        with open_zip(path, entries=MAX_ENTRIES) as archive:
            inner = next(inner for inner in archive.namelist() if inner.endswith("data.pkl"))
            foreign = foreign_globals(read_member(archive, inner, MAX_PICKLE_BYTES))
    elif is_legacy_torch(head):
        foreign = []  # Several pickles in a row: the sandboxed converter reads them by its own allow-list.
    else:
        raise Rejected(f"{name} is no torch weights file", remedy=remedy, check="weights")
    if foreign:
        raise Rejected(
            f"{name} is a torch pickle that holds more than weights: loading it would import {shown(foreign[0])}",
            remedy=remedy,
            check="weights",
        )


def foreign_globals(data: bytes) -> list[str]:
    """Names that a pickle (or a torch zip around one) would import beyond what tensors need; ["?"] when unreadable.

    This recognises honest mistakes and crude attacks; what keeps us safe is that the bytes are never unpickled.
    """
    if data.startswith(b"PK"):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                inner = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
                if len(inner) != 1 or inner[0].file_size > MAX_PICKLE_BYTES:
                    return ["?"]
                data = archive.read(inner[0])
        except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError, zipfile.zlib.error):  # type: ignore[attr-defined]
            return ["?"]
    try:
        return sorted({name for name in _globals(data) if name.rsplit(".", 1)[0] not in _TENSOR_MODULES})
    except (ValueError, UnicodeDecodeError, IndexError, OverflowError):
        return ["?"]


def _globals(data: bytes) -> list[str]:
    found: list[str] = []
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(data[:MAX_PICKLE_BYTES]):
        if opcode.name in {"GLOBAL", "INST"}:
            found.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.append(".".join(texts[-2:]) or "?")
        elif isinstance(argument, str):
            texts = [*texts[-1:], argument]
        elif opcode.name in {"EXT1", "EXT2", "EXT4"}:
            found.append("?.extension")
    return found
