"""Commands on endpoints: deploy, endpoints, split, scale."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from serinus.control import Control, ControlError
from serinus.output import Json, emit, fails_clearly, table

FULL_BP = 10_000


def resolve(control: Control, reference: str) -> tuple[str, int]:
    """NAME, NAME@alias or NAME:version -> (name, number); the plain name is the newest ready version."""
    if ":" in reference:
        name, _, number = reference.partition(":")
        if not number.isdigit():
            raise ControlError(f"'{reference}': the version after ':' must be a number", code="malformed")
        return name, int(number)
    name, _, alias = reference.partition("@")
    if alias:
        for row in control.pages(f"/api/models/{name}/aliases/"):
            if row["name"] == alias:
                return name, int(row["version"])
        raise ControlError(f"'{name}' has no alias '{alias}'", code="not_found")
    for row in control.pages(f"/api/models/{name}/versions/"):
        if row["status"] == "ready":
            return name, int(row["number"])
    raise ControlError(f"'{name}' has no version that is ready", code="not_found")


@fails_clearly
def deploy(
    reference: Annotated[str, typer.Argument(metavar="NAME[@ALIAS|:VERSION]")],
    *,
    endpoint: Annotated[str, typer.Option(help="Public name; the model's own when not given.")] = "",
    min_replicas: Annotated[int, typer.Option("--min", "--replicas", min=0, max=64, help="Replicas to run.")] = 1,
    device: Annotated[str, typer.Option(help="any, cpu, cuda or tpu.")] = "any",
    public: Annotated[bool, typer.Option(help="Predictions need no key.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until a replica is ready.")] = True,
    timeout_s: Annotated[float, typer.Option(help="Give up waiting after this long.")] = 300,
    as_json: Json = False,
) -> None:
    """Put a version behind an endpoint; the first one takes all traffic, later ones none until you split it."""
    control = Control()
    name, number = resolve(control, reference)
    body = {"name": endpoint or name, "model": name, "version": number, "replicas": min_replicas, "device": device}
    body["access"] = "public" if public else "key"
    row = control.call("POST", "/api/endpoints/", body)
    if wait and min_replicas:
        row = wait_ready(control, row["name"], number, timeout_s)
    emit(row, as_json=as_json, text=f"{name}:{number} serves at endpoint [bold]{row['name']}[/]")


def wait_ready(control: Control, endpoint: str, number: int, timeout_s: float) -> Any:
    """Polls until `number` has a ready replica behind `endpoint`."""
    end = time.monotonic() + timeout_s
    while True:
        row = control.call("GET", f"/api/endpoints/{endpoint}/")
        variant = next((v for v in row["variants"] if v["version"] == number), None)
        if variant and variant["ready_replicas"]:
            return row
        if time.monotonic() > end:
            why = (variant or {}).get("reason") or "see the endpoint's page"
            raise ControlError(f"{endpoint}: version {number} is not ready after {timeout_s:.0f} s: {why}")
        time.sleep(0.2)


@fails_clearly
def endpoints(*, as_json: Json = False) -> None:
    """List the endpoints and how their traffic is split."""
    rows = list(Control().pages("/api/endpoints/"))
    shown = [(row["name"], row["model"], row["access"], _split_text(row["variants"])) for row in rows]
    emit(rows, as_json=as_json, text=table(["endpoint", "model", "access", "traffic"], shown))


def _split_text(variants: list[dict[str, Any]]) -> str:
    return ", ".join(f"v{v['version']} {v['weight_bp'] / 100:g} % ({v['ready_replicas']} ready)" for v in variants)


@fails_clearly
def split(
    endpoint: str,
    shares: Annotated[list[str], typer.Argument(metavar="VERSION=PERCENT...")],
    *,
    force: Annotated[bool, typer.Option(help="Even to a version without a ready replica.")] = False,
    as_json: Json = False,
) -> None:
    """Share an endpoint's traffic out over versions, for example: serinus split digits 1=90 2=10"""
    body = {"weights": weights(shares), "force": force}
    row = Control().call("PUT", f"/api/endpoints/{endpoint}/weights/", body)
    emit(row, as_json=as_json, text=f"{endpoint}: {_split_text(row['variants'])}")


def weights(shares: list[str]) -> dict[str, int]:
    """["1=90", "2=10"] -> {"1": 9000, "2": 1000} in basis points. Raises ControlError unless they sum to 100 %."""
    found: dict[str, int] = {}
    for share in shares:
        number, _, percent = share.partition("=")
        try:
            found[str(int(number))] = round(float(percent) * 100)
        except ValueError as error:
            raise ControlError(f"'{share}' is not VERSION=PERCENT, as in 1=90", code="malformed") from error
    if sum(found.values()) != FULL_BP:
        raise ControlError(f"the shares sum to {sum(found.values()) / 100:g} %, not 100 %", code="invalid_request")
    return found


@fails_clearly
def scale(
    reference: Annotated[str, typer.Argument(metavar="NAME:VERSION")],
    replicas: Annotated[int, typer.Argument(min=0, max=64)],
    *,
    as_json: Json = False,
) -> None:
    """Run so many replicas of a version."""
    control = Control()
    name, number = resolve(control, reference)
    body = {"model": name, "version": number, "replicas": replicas}
    row = control.call("POST", "/api/deployments/", body)
    emit(row, as_json=as_json, text=f"{name}:{number} x {replicas}")


@fails_clearly
def undeploy(endpoint: str, number: Annotated[int, typer.Argument(min=1)], *, as_json: Json = False) -> None:
    """Take a version that gets no traffic from behind an endpoint."""
    row = Control().call("POST", f"/api/endpoints/{endpoint}/undeploy/", {"version": number})
    emit(row, as_json=as_json, text=f"{endpoint}: version {number} is no longer deployed")


@fails_clearly
def hosts(*, as_json: Json = False) -> None:
    """List the hosts, their devices and their replicas."""
    rows = list(Control().pages("/api/hosts/"))
    shown = [(r["name"], "alive" if r["alive"] else "lost", len(r["devices"]), r.get("problem", "")) for r in rows]
    emit(rows, as_json=as_json, text=table(["host", "state", "devices", "problem"], shown))


def register(app: typer.Typer) -> None:
    for command in (deploy, endpoints, split, scale, undeploy, hosts):
        app.command()(command)
