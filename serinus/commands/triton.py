"""The command that takes over a Triton model repository."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from serinus.control import Control
from serinus.output import Json, emit, err, fails_clearly, table
from serinus.repository.importing import Importer
from serinus.repository.planning import rows

COLUMNS = ["model", "in Triton", "here", "state", "what to know"]


@fails_clearly
def import_triton(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The model repository.")],
    *,
    model: Annotated[list[str] | None, typer.Option(help="Only this model; may be given again.")] = None,
    approve: Annotated[bool, typer.Option(help="Approve code too, where you may do so alone.")] = False,
    deploy: Annotated[bool, typer.Option(help="Put each model behind an endpoint of its name.")] = True,
    as_json: Json = False,
) -> None:
    """Import a Triton model repository: each model's versions, with their settings, and an endpoint of its name."""
    quiet = as_json or not sys.stderr.isatty()
    importer = Importer(
        Control(), directory, lambda text: None if quiet else err.print(text), approve=approve, deploy=deploy
    )
    outcomes = importer.run(model or [])
    value = {"versions": [asdict(one) for one in outcomes]}
    emit(value, as_json=as_json, text=table(COLUMNS, rows(outcomes)))
    if any(one.is_trouble for one in outcomes):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    app.command("import-triton")(import_triton)
