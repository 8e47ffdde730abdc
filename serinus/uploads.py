"""From a path on this machine to a version: files by tus, then one call that makes the version out of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from serinus.control import Control, ControlError

MAX_FILES = 2_000


@dataclass(frozen=True, slots=True)
class Part:
    """A file to send, and its path inside the version."""

    file: Path
    path: str


def parts_of(path: Path) -> list[Part]:
    """One part for a file; every regular file below for a folder. Raises ControlError when there is nothing."""
    if path.is_file():
        return [Part(path, path.name)]
    if not path.is_dir():
        raise ControlError(f"{path} does not exist", code="not_found")
    files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
    if not files:
        raise ControlError(f"{path} holds no files", code="empty")
    if len(files) > MAX_FILES:
        raise ControlError(f"{path} holds {len(files)} files; a version may have {MAX_FILES}", code="too_many_files")
    return [Part(file, file.relative_to(path).as_posix()) for file in files]


def _hidden(file: Path, root: Path) -> bool:
    inside = file.relative_to(root).parts
    return any(part.startswith(".") or part == "__pycache__" for part in inside)


def send(
    control: Control, name: str, path: Path, *, settings: dict[str, Any], alias: str, screen: Console | None
) -> Any:
    """Uploads `path` and makes a version of model `name` out of it; the new version as the API shows it."""
    parts = parts_of(path)
    files = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=screen or Console(stderr=True), disable=screen is None, transient=True) as bars:
        for part in parts:
            task = bars.add_task(part.path, total=part.file.stat().st_size)

            def seen(sent: int, task: Any = task) -> None:
                bars.update(task, completed=sent)

            files.append({"path": part.path, "upload": control.upload(part.file, part.path, seen)})
    body: dict[str, Any] = {"files": files, "runtime": settings}
    if alias:
        body["alias"] = alias
    return control.patiently(lambda: control.call("POST", f"/api/models/{name}/versions/", body), twice=False)
