"""`serinus adapter`: LoRA adapters of an endpoint that serves their base version."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from serinus.commands.traffic import resolve
from serinus.control import Control, ControlError
from serinus.output import Json, emit, fails_clearly, table

app = typer.Typer(help="Add, remove and list an endpoint's LoRA adapters.", no_args_is_help=True)


@app.command()
@fails_clearly
def add(
    endpoint: str,
    reference: Annotated[str, typer.Argument(metavar="NAME[@ALIAS|:VERSION]")],
    *,
    name: Annotated[str, typer.Option("--as", help="What clients call it; its model's name when not given.")] = "",
    wait: Annotated[bool, typer.Option(help="Wait until the ready replicas have it.")] = True,
    timeout_s: Annotated[float, typer.Option(help="Give up waiting after this long.")] = 120,
    as_json: Json = False,
) -> None:
    """Have an endpoint's replicas load an adapter, while they serve; clients then name the model ENDPOINT:NAME."""
    control = Control()
    model, number = resolve(control, reference)
    called = name or model
    body = {"model": model, "version": number, "name": called}
    row = control.call("POST", f"/api/endpoints/{endpoint}/adapters/", body)
    if wait:
        row = _wait_loaded(control, endpoint, called, timeout_s)
    emit(row, as_json=as_json, text=f"{model}:{number} answers as [bold]{endpoint}:{called}[/]")


def _wait_loaded(control: Control, endpoint: str, name: str, timeout_s: float) -> Any:
    """Polls until every ready replica has it; none is waited for where none is ready."""
    end = time.monotonic() + timeout_s
    while True:
        row = control.call("GET", f"/api/endpoints/{endpoint}/")
        adapter = next((one for one in row["adapters"] if one["name"] == name), None)
        if adapter is None:
            raise ControlError(f"{endpoint}:{name} was removed meanwhile", code="conflict")
        if adapter["state"] == "loaded" or not adapter["replicas"]:
            return row
        if adapter["state"] == "failed":
            raise ControlError(f"{endpoint}:{name} is not loaded: {adapter['reason']}", code="rejected")
        if time.monotonic() > end:
            raise ControlError(f"{endpoint}:{name} is not loaded after {timeout_s:.0f} s: see the endpoint's page")
        time.sleep(0.2)


@app.command()
@fails_clearly
def remove(endpoint: str, name: str, *, as_json: Json = False) -> None:
    """Take an adapter away from an endpoint; requests that began with it end with it."""
    row = Control().call("DELETE", f"/api/endpoints/{endpoint}/adapters/{name}/")
    emit(row, as_json=as_json, text=f"{endpoint}:{name} is gone")


@app.command("list")
@fails_clearly
def list_adapters(endpoint: str, *, as_json: Json = False) -> None:
    """List an endpoint's adapters and in how many replicas each is loaded."""
    rows = Control().call("GET", f"/api/endpoints/{endpoint}/")["adapters"]
    shown = [
        (f"{endpoint}:{r['name']}", f"{r['model']}:{r['version']}", f"v{r['base']}", _state(r), r["reason"])
        for r in rows
    ]
    emit(rows, as_json=as_json, text=table(["model", "adapter", "base", "state", "reason"], shown))


def _state(row: dict[str, Any]) -> str:
    return f"{row['state']} ({row['loaded']} of {row['replicas']})"
