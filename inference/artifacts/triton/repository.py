"""A model repository on disk: which models there are, which of their versions are served, and of which files.

Reads folders and config.pbtxt alone. Nothing outside of a model's own folder is ever named as one of its files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from inference.artifacts import onnx
from inference.artifacts.triton import config as configs
from inference.artifacts.triton.refusals import refuse
from inference.artifacts.triton.translate import ENSEMBLE, ONNX, PYTHON, Translated, translate
from inference.errors import Rejected

NUMBER = re.compile(r"[1-9][0-9]{0,8}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MAX_MODELS = 1000
MAX_FILES = 2000
MAX_LABELS_BYTES = 1 << 20
SKIPPED = {"__pycache__"}


@dataclass(frozen=True, slots=True)
class Part:
    """A file on disk, and its path inside the version."""

    file: Path
    path: str


@dataclass(frozen=True, slots=True)
class Numbered:
    """One numbered folder that is served, and what the version is made of (nothing, for an ensemble)."""

    number: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class RepositoryModel:
    """A model of the repository, said in our terms. versions: ascending; the last one is what clients get."""

    name: str
    translated: Translated
    versions: tuple[Numbered, ...]


def names(root: Path) -> list[str]:
    """The folders that are models. Raises Rejected when `root` is no folder or holds too many."""
    if not root.is_dir():
        raise Rejected(f"{root} is no folder", remedy="Name the folder that holds one folder for each model.")
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and not _is_skipped(path.name))
    if len(found) > MAX_MODELS:
        raise Rejected(f"the repository holds more than {MAX_MODELS} models", remedy="Import it in parts.")
    return found


def model(root: Path, name: str, override: Path | None = None) -> RepositoryModel:
    """What is to be served of the model's folder; override: what takes the place of its config.pbtxt.

    Raises Rejected, naming what is wrong, before anything is done.
    """
    folder = root / name
    if not NAME.fullmatch(name):
        raise Rejected(
            f"'{name[:80]}' cannot be a model's name here",
            remedy="Names have up to 64 letters, digits, '-' and '_', and begin with a letter or digit: rename the folder.",
        )
    numbers = _numbers(folder)
    text = override or folder / configs.NAME
    config = configs.read(_bytes(text, configs.MAX_BYTES)) if text.is_file() else configs.empty()
    inside = {path.name for number in numbers for path in (folder / str(number)).iterdir()}
    translated = translate(config, folder=name, files=sorted(inside))
    chosen = translated.policy.chosen(numbers or ([1] if translated.backend == ENSEMBLE else []))
    if not chosen:
        raise Rejected(
            f"model '{name}' has no version that its version_policy serves",
            remedy=f"Put the model into {name}/1/, or change version_policy.",
        )
    if translated.label_file:
        translated = _labelled(folder, translated)
    versions = tuple(Numbered(n, _configured(_parts(folder, n, translated), translated, override)) for n in chosen)
    return RepositoryModel(name, translated, versions)


def _numbers(folder: Path) -> list[int]:
    if not folder.is_dir():
        raise Rejected(f"there is no model '{folder.name}' in the repository", remedy="See the folder's names.")
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and NUMBER.fullmatch(path.name))


def _parts(folder: Path, number: int, translated: Translated) -> tuple[Part, ...]:
    if translated.backend == ENSEMBLE:
        return ()
    inside = folder / str(number)
    if translated.backend == ONNX and (inside / translated.filename).is_dir():
        inside /= translated.filename  # as Triton has it: model.onnx/model.onnx with its weights beside it
    main = _file(inside, translated.filename, "default_model_filename")
    if translated.backend == PYTHON:
        return _whole(folder, number)
    if translated.backend == ONNX:
        return (Part(main, main.name), *_beside(inside, main), *_extra(folder, translated))
    return (Part(main, main.name), *_extra(folder, translated))


def _beside(inside: Path, main: Path) -> list[Part]:
    """The files with weights that an ONNX graph names. It is read only where there is anything beside it; whether it is
    a graph at all, its validation tells.
    """
    if not any(one != main for one in inside.iterdir()) or not onnx.looks_like(main):
        return []
    return [Part(_file(inside, name, "external data of the graph"), name) for name in onnx.read(main).outside]


def _extra(folder: Path, translated: Translated) -> list[Part]:
    return [Part(_file(folder, name, "model_warmup"), name) for name in translated.extra_files]


def _configured(parts: tuple[Part, ...], translated: Translated, override: Path | None) -> tuple[Part, ...]:
    """A Python model reads its configuration out of its own files, so an override stands among them."""
    if override is None or translated.backend != PYTHON:
        return parts
    return (*(part for part in parts if part.path != configs.NAME), Part(override, configs.NAME))


def _whole(folder: Path, number: int) -> tuple[Part, ...]:
    """A Python model may read whatever lies in its folder, so all of it but the other versions."""
    found = []
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        other = NUMBER.fullmatch(inside.parts[0]) and inside.parts[0] != str(number)
        if other or any(_is_skipped(part) for part in inside.parts) or not path.is_file():
            continue
        found.append(Part(_file(folder, inside.as_posix(), "files"), inside.as_posix()))
        if len(found) > MAX_FILES:
            raise Rejected(
                f"model '{folder.name}' has more than {MAX_FILES} files", remedy="Leave out what it does not need."
            )
    return tuple(found)


def _labelled(folder: Path, translated: Translated) -> Translated:
    data = _bytes(_file(folder, translated.label_file, "output.label_filename"), MAX_LABELS_BYTES)
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise refuse("output.label_filename", f"'{translated.label_file}' is no UTF-8 text") from error
    while lines and not lines[-1]:
        lines.pop()
    return replace(translated, settings=msgspec.structs.replace(translated.settings, labels=lines))


def _file(folder: Path, name: str, field: str) -> Path:
    """The plain file `name` inside of `folder`, wherever links lead. Raises Rejected."""
    path, root = folder / name, folder.resolve()
    if path.is_dir():
        raise refuse(field, f"'{folder.name}/{name}' is a folder, with weights beside the graph: save it as one file")
    if not path.is_file():
        raise Rejected(
            f"{folder.name}/{name} is missing", remedy=f"It is named by '{field}' of config.pbtxt, or by default."
        )
    if not path.resolve().is_relative_to(root):
        raise refuse(field, f"'{name}' leads out of the folder {folder.name}")
    return path


def _bytes(path: Path, most: int) -> bytes:
    with path.open("rb") as source:
        data = source.read(most + 1)
    if len(data) > most:
        raise Rejected(f"{path.name} is larger than {most} bytes", remedy="Make it smaller.")
    return data


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name in SKIPPED
