"""`serinus keys`: API keys of services."""

from __future__ import annotations

from typing import Annotated

import typer

from serinus.control import Control
from serinus.output import Json, emit, fails_clearly, out, table

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)


@app.command()
@fails_clearly
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    *,
    team: Annotated[str, typer.Option(help="The team that owns it.")] = "default",
    role: Annotated[str, typer.Option(help="viewer, developer, operator or admin at the control API.")] = "viewer",
    endpoint: Annotated[list[str] | None, typer.Option(help="Endpoint it may call; repeat it; none is all.")] = None,
    expires_at: Annotated[str, typer.Option(help="ISO 8601 time after which it is refused.")] = "",
    requests_per_s: Annotated[float, typer.Option(help="Requests a second that a gateway lets through; 0: all.")] = 0,
    rows_per_s: Annotated[float, typer.Option(help="Rows a second that a gateway lets through; 0: all.")] = 0,
    as_json: Json = False,
) -> None:
    """Create a key; its secret is shown this once."""
    body = {
        "name": name, "team": team, "role": role, "endpoints": endpoint or ["*"], "expires_at": expires_at or None,
        "requests_per_s": requests_per_s, "rows_per_s": rows_per_s,
    }  # fmt: skip
    row = Control().call("POST", "/api/keys/", body)
    emit(row, as_json=as_json, text=f"[bold]{row['token']}[/]")
    if not as_json:
        out.print("Keep it: it is not shown again.")


@app.command("list")
@fails_clearly
def show(*, as_json: Json = False) -> None:
    """List the keys of your teams."""
    rows = list(Control().pages("/api/keys/"))
    shown = [(f"ser_{r['id']}", r["name"], r["role"], ",".join(r["endpoints"]), r["revoked_at"] or "") for r in rows]
    emit(rows, as_json=as_json, text=table(["key", "name", "role", "endpoints", "revoked"], shown))


@app.command()
@fails_clearly
def limit(
    key: Annotated[str, typer.Argument(help="Its id, with or without ser_.")],
    *,
    requests_per_s: Annotated[float | None, typer.Option(help="Requests a second; 0 takes the bound away.")] = None,
    rows_per_s: Annotated[float | None, typer.Option(help="Rows a second; 0 takes the bound away.")] = None,
    as_json: Json = False,
) -> None:
    """Change how much a key may send; gateways follow within a second."""
    wanted = {"requests_per_s": requests_per_s, "rows_per_s": rows_per_s}
    body = {name: rate for name, rate in wanted.items() if rate is not None}
    row = Control().call("PATCH", f"/api/keys/{_identity(key)}/", body)
    text = f"ser_{row['id']}: {row['requests_per_s'] or 'any number of'} requests/s, {row['rows_per_s'] or 'any number of'} rows/s"
    emit(row, as_json=as_json, text=text)


def _identity(key: str) -> str:
    return key.removeprefix("ser_").split(".", 1)[0]


@app.command()
@fails_clearly
def revoke(key: Annotated[str, typer.Argument(help="Its id, with or without ser_.")], *, as_json: Json = False) -> None:
    """Revoke a key; gateways refuse it within a second."""
    identity = _identity(key)
    row = Control().call("POST", f"/api/keys/{identity}/revoke/", {})
    emit(row, as_json=as_json, text=f"ser_{identity} is revoked")
