"""How commands speak: tables and sentences for people, one JSON value with --json; errors always on stderr."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from rich.console import Console, RenderableType
from rich.table import Table

from inference.config import BadSetting
from inference.errors import SerinusError
from serinus.control import ControlError
from serinus.processes import StartError
from serinus.services import ServiceError
from serinus.up import AlreadyRunning

P = ParamSpec("P")
R = TypeVar("R")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]
KNOWN = (ControlError, StartError, ServiceError, AlreadyRunning, BadSetting, SerinusError, OSError)

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def emit(value: Any, *, as_json: bool, text: RenderableType | None = None) -> None:
    """Prints `value` as JSON, or `text` for a person."""
    if as_json:
        sys.stdout.write(json.dumps(value, default=str) + "\n")
    elif text is not None:
        out.print(text)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    made = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        made.add_row(*("" if cell is None else str(cell) for cell in row))
    return made


def fails_clearly(command: Callable[P, R]) -> Callable[P, R]:
    """Turns known errors into one line on stderr and exit status 1; with --json into {"error": {...}}."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KNOWN as error:
            report(error, as_json=bool(kwargs.get("as_json")))
            raise typer.Exit(1) from error

    return run


def report(error: Exception, *, as_json: bool) -> None:
    code, remedy = getattr(error, "code", "failed"), getattr(error, "remedy", "")
    if as_json:
        sys.stdout.write(json.dumps({"error": {"code": code, "message": str(error), "remedy": remedy}}) + "\n")
        return
    err.print(f"[bold red]error:[/] {error}", markup=True, soft_wrap=True)
    if remedy:
        err.print(f"[bold]what to do:[/] {remedy}", soft_wrap=True)
