"""Commands on models and versions: upload, versions, approve, convert, predict."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from serinus.control import Control, ControlError
from serinus.conversions import convert_weights, fetch_converted
from serinus.output import Json, emit, err, fails_clearly, table
from serinus.uploads import send

Number = Annotated[int, typer.Argument(min=1)]


@fails_clearly
def upload(
    name: Annotated[str, typer.Argument(help="The model's name; it is made when missing.")],
    path: Annotated[Path, typer.Argument(help="A file, a folder or a zip.")],
    *,
    alias: Annotated[str, typer.Option(help="Also point this alias at the new version.")] = "",
    task: Annotated[str, typer.Option(help="For encoders: feature-extraction or text-classification.")] = "",
    max_batch_size: Annotated[int, typer.Option(min=0, max=4096, help="0: validation chooses.")] = 0,
    window_ms: Annotated[
        float | None,
        typer.Option(min=0, max=50, help="How long a batch may wait for company; 5 where nothing is said."),
    ] = None,
    more: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=JSON", help="Any other setting, see docs/batching.md.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for validation to end.")] = True,
    timeout_s: Annotated[float, typer.Option(help="Give up waiting after this long.")] = 600,
    as_json: Json = False,
) -> None:
    """Upload a trained model as the next version; an interrupted upload goes on where it stopped."""
    control = Control()
    settings: dict[str, Any] = {"max_batch_size": max_batch_size}
    if window_ms is not None:
        settings["window_ms"] = window_ms
    if task:
        settings["task"] = task
    settings |= settings_given(more or [])
    screen = None if as_json or not sys.stderr.isatty() else err
    version = send(control, name, path, settings=settings, alias=alias, screen=screen)
    if wait:
        version = _follow(control, name, version["number"], timeout_s, quiet=as_json)
    steps = ", ".join(f"{step['name']} {step['model']}:{step['version']}" for step in version.get("steps", []))
    text = f"{name}:{version['number']} is [bold]{version['status']}[/]" + f" [dim](steps: {steps})[/]" * bool(steps)
    emit(version, as_json=as_json, text=text)
    if version["status"] == "rejected":
        if not as_json:
            err.print(f"[bold red]rejected:[/] {version['reason']}")
            err.print(f"[bold]what to do:[/] {version['remedy']}")
        raise typer.Exit(1)


def settings_given(words: list[str]) -> dict[str, Any]:
    """["instances=2", "queue_policy={...}"] -> settings by name; a value that is no JSON is taken as text."""
    found: dict[str, Any] = {}
    for word in words:
        name, is_pair, value = word.partition("=")
        if not is_pair or not name:
            raise ControlError(f"'{word}' is not NAME=JSON, as in instances=2", code="malformed")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _follow(control: Control, name: str, number: int, timeout_s: float, *, quiet: bool) -> Any:
    told: set[str] = set()

    def seen(version: dict[str, Any]) -> None:
        for check in (version.get("report") or {}).get("checks", []):
            line = f"{check['state']:>8}  {check['name']}"
            if check["state"] in {"passed", "failed"} and line not in told and not quiet:
                told.add(line)
                err.print(f"{line}  [dim]{check['ms']:.0f} ms[/]")

    return control.wait_version(name, number, seen, timeout_s)


@fails_clearly
def models(*, as_json: Json = False) -> None:
    """List the models that you may see."""
    rows = list(Control().pages("/api/models/"))
    shown = [(row["name"], row.get("team"), row.get("latest_version"), row.get("task")) for row in rows]
    emit(rows, as_json=as_json, text=table(["model", "team", "latest", "task"], shown))


@fails_clearly
def versions(name: str, *, as_json: Json = False) -> None:
    """List the versions of a model, newest first."""
    rows = list(Control().pages(f"/api/models/{name}/versions/"))
    shown = [(r["number"], r["status"], r["format"], r["tier"], r["reason"] or "") for r in rows]
    emit(rows, as_json=as_json, text=table(["version", "status", "format", "trust", "reason"], shown))


@fails_clearly
def approve(name: str, number: Number, *, as_json: Json = False) -> None:
    """Approve a version that runs code, as the second person."""
    version = Control().call("POST", f"/api/models/{name}/versions/{number}/approve/", {})
    emit(version, as_json=as_json, text=f"{name}:{number} is {version['status']}")


@fails_clearly
def convert(
    name: str,
    number: Number,
    *,
    out: Annotated[Path, typer.Option(help="Where the safetensors file is written.")] = Path("model.safetensors"),
    timeout_s: Annotated[float, typer.Option(help="Give up waiting after this long.")] = 600,
    as_json: Json = False,
) -> None:
    """Have the weights of a rejected torch pickle converted to safetensors in the sandbox, and fetch the file."""
    if out.exists():
        raise ControlError(f"{out} exists already: name another file with --out", code="file_exists")
    control = Control()
    done = convert_weights(control, name, number, timeout_s)
    if done["state"] == "failed":
        raise ControlError(done["reason"], code="rejected", remedy=done["remedy"])
    fetch_converted(control, name, number, out)
    listed = [(t["name"], t["dtype"], "x".join(map(str, t["shape"]))) for t in done["tensors"]]
    emit({**done, "saved": str(out)}, as_json=as_json, text=table(["tensor", "type", "shape"], listed))
    if not as_json:
        err.print(f"[green]{out}[/] holds {done['tensor_count']} tensors ({done['file']['size_bytes']:,} bytes)")
        for way in done["next"]:
            err.print(f"[dim]{way}[/]")


@fails_clearly
def alias(name: str, alias_name: str, number: Number, *, reason: str = "", as_json: Json = False) -> None:
    """Point an alias of a model at a version."""
    body = {"version": number, "reason": reason}
    done = Control().call("PUT", f"/api/models/{name}/aliases/{alias_name}/", body)
    emit(done, as_json=as_json, text=f"{name}@{alias_name} -> {number}")


@fails_clearly
def predict(
    endpoint: str,
    text: Annotated[str, typer.Option(help="Text for a model with one text input.")] = "",
    data: Annotated[
        str, typer.Option(help="JSON: a flat list for the only input, or {name: list}; '-' is stdin.")
    ] = "",
    version: Annotated[int, typer.Option(help="Pin a version; 0 lets the endpoint choose.")] = 0,
    *,
    as_json: Json = False,
) -> None:
    """Send one prediction to an endpoint and print the outputs."""
    from inference.client import Client

    control = Control()
    client = Client(control.gateway_url, control.key)
    inputs = inputs_given(client.metadata(endpoint, version=version or None), text, data)
    answer = client.infer(endpoint, inputs, version=version or None)
    shown = [(o["name"], o["datatype"], "x".join(map(str, o["shape"])), _short(o["data"])) for o in answer.outputs]
    emit(asdict(answer), as_json=as_json, text=table(["output", "type", "shape", "data"], shown))
    if not as_json:
        err.print(f"[dim]version {answer.model_version} in {answer.took_ms:.1f} ms[/]")


def _short(values: list[Any]) -> str:
    head = ", ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in values[:8])
    return head + (f", ... ({len(values)})" if len(values) > 8 else "")


def inputs_given(metadata: dict[str, Any], text: str, data: str) -> list[dict[str, Any]]:
    """Open Inference Protocol inputs from what the person typed. Raises ControlError when it does not fit."""
    specs = metadata["inputs"]
    given = _given(specs, text, data)
    made = []
    for spec in specs:
        if spec["name"] not in given:
            raise ControlError(f"input '{spec['name']}' is missing; this endpoint takes {specs}", code="invalid_input")
        values = given[spec["name"]]
        made.append({**spec, "shape": _shape(spec["shape"], len(values)), "data": values})
    return made


def _given(specs: list[dict[str, Any]], text: str, data: str) -> dict[str, list[Any]]:
    if text:
        return {specs[0]["name"]: [text]}
    try:
        value = json.loads(sys.stdin.read() if data == "-" else data)
    except ValueError as error:
        raise ControlError(f"--data is no JSON: {error}", code="malformed") from error
    return value if isinstance(value, dict) else {specs[0]["name"]: value}


def _shape(shape: list[int], count: int) -> list[int]:
    known = 1
    for size in shape:
        known *= max(size, 1)
    free = [i for i, size in enumerate(shape) if size == -1]
    return [max(count // known, 1) if free and i == free[0] else max(size, 1) for i, size in enumerate(shape)]


def register(app: typer.Typer) -> None:
    for command in (upload, models, versions, approve, convert, alias, predict):
        app.command()(command)
