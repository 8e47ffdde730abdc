"""`serinus golden`: requests with known answers, which every candidate of a rollout must answer alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from inference.client import Client
from serinus.control import Control, ControlError
from serinus.output import Json, emit, fails_clearly, table

app = typer.Typer(help="Save, list and remove a model's golden inputs.", no_args_is_help=True)


@app.command()
@fails_clearly
def add(
    model: str,
    file: Annotated[
        Path | None,
        typer.Argument(help='JSON with "inputs" and, unless --ask, "outputs": tensors of the Open Inference Protocol.'),
    ] = None,
    *,
    name: Annotated[str, typer.Option(help="What to call it; golden-N when not given.")] = "",
    prompt: Annotated[str, typer.Option(help="Of a language model, instead of a file.")] = "",
    expected: Annotated[str, typer.Option(help="The text that the prompt is answered with, greedily.")] = "",
    ask: Annotated[str, typer.Option(metavar="ENDPOINT", help="Ask this endpoint, and take its answer.")] = "",
    comparison: Annotated[str, typer.Option(help="auto, exact, close, cosine, top_k, tokens or text.")] = "auto",
    tolerance: Annotated[float, typer.Option(help="The largest distance, 0 to 1, that is still right.")] = 0.01,
    as_json: Json = False,
) -> None:
    """Save a request with its right answer."""
    if (file is None) == (not prompt):
        raise ControlError("give either a file or --prompt with --expected", code="invalid_request")
    control = Control()
    body: dict[str, Any] = {"name": name, "comparison": comparison, "tolerance": tolerance}
    if file is None:
        body |= {"prompt": prompt, "expected": expected}
    else:
        body |= _answered(control, ask, _read(file)) if ask else _read(file)
    row = control.call("POST", f"/api/models/{model}/golden/", body)
    emit(row, as_json=as_json, text=f"{model} has the golden input [bold]{row['name']}[/] ({row['id']})")


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ControlError(f"{file} is no JSON: {error}", code="malformed") from error
    if not isinstance(found, dict) or "inputs" not in found:
        raise ControlError(f'{file} has no "inputs"', code="malformed")
    return {key: found[key] for key in ("inputs", "outputs", "parameters") if key in found}


def _answered(control: Control, endpoint: str, request: dict[str, Any]) -> dict[str, Any]:
    """The request with what the endpoint answers now, and which version did."""
    if not control.gateway_url:
        raise ControlError("no gateway is known here: set SERINUS_GATEWAY_URL", code="not_configured")
    with Client(control.gateway_url, control.key) as client:
        answer = client.infer(endpoint, request["inputs"], parameters=request.get("parameters"))
    return {**request, "outputs": answer.outputs, "version": int(answer.model_version)}


@app.command("list")
@fails_clearly
def show(model: str, *, as_json: Json = False) -> None:
    """List a model's golden inputs."""
    rows = Control().call("GET", f"/api/models/{model}/golden/")
    shown = [(r["id"], r["name"], r["comparison"], r["tolerance"], r["version"], r["created_by"]) for r in rows]
    emit(rows, as_json=as_json, text=table(["id", "name", "compared", "tolerance", "version", "by"], shown))


@app.command()
@fails_clearly
def remove(
    model: str, golden: Annotated[str, typer.Argument(help="Its id or its name.")], *, as_json: Json = False
) -> None:
    """Remove a golden input."""
    control = Control()
    rows = control.call("GET", f"/api/models/{model}/golden/")
    found = next((row for row in rows if golden in (str(row["id"]), row["name"])), None)
    if found is None:
        raise ControlError(f"{model} has no golden input '{golden}'", code="not_found")
    control.call("DELETE", f"/api/models/{model}/golden/{found['id']}/")
    emit(found, as_json=as_json, text=f"{found['name']} is gone")
