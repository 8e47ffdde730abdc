"""Commands on rollouts: start, status, promote, pause, resume, extend, approve, abort, back, history, plans."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from serinus.commands.traffic import resolve
from serinus.control import Control, ControlError
from serinus.output import Json, emit, fails_clearly, out, table

app = typer.Typer(help="Move traffic to another version, step by step, with a judge.", no_args_is_help=True)
EndpointName = Annotated[str, typer.Argument(metavar="ENDPOINT")]
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why, for the event log and the audit trail.")]
FINAL = ("succeeded", "rolled_back", "failed")
POLL_S = 0.5


@app.command()
@fails_clearly
def start(
    endpoint: EndpointName,
    version: Annotated[str, typer.Argument(help="Number of the version, or @ALIAS.")],
    *,
    plan: Annotated[
        str, typer.Option(help="Name of a plan, or a JSON file with one; see 'serinus rollout plans'.")
    ] = "",
    reason: Reason = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it until it has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Start to move ENDPOINT's traffic to VERSION."""
    control = Control()
    body = {
        "endpoint": endpoint, "version": _number(control, endpoint, version), "plan": _plan(plan), "reason": reason,
        "dry_run": dry_run,
    }  # fmt: skip
    row = control.call("POST", "/api/rollouts/", body)
    if dry_run:
        emit(row, as_json=as_json, text=_preview(row))
    elif watch:
        _watch(control, row["id"], as_json=as_json)
    else:
        emit(row, as_json=as_json, text=_shown(row))


@app.command()
@fails_clearly
def status(
    endpoint: EndpointName,
    *,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Follow it until it has ended; exit status 1 unless it succeeded.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show ENDPOINT's newest rollout: phase, shares, and what the judge knows."""
    control = Control()
    row = _newest(control, endpoint)
    if watch:
        _watch(control, row["id"], as_json=as_json)
    else:
        emit(row, as_json=as_json, text=_shown(row))


@app.command()
@fails_clearly
def promote(
    endpoint: EndpointName,
    *,
    full: Annotated[bool, typer.Option(help="All of the traffic, not just the next step.")] = False,
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Go on to the next step whatever the judge says, or fully."""
    _act(endpoint, "promote_full" if full else "promote", reason, as_json=as_json)


@app.command()
@fails_clearly
def pause(endpoint: EndpointName, *, reason: Reason = "", as_json: Json = False) -> None:
    """Stay where it is; the guards stay armed."""
    _act(endpoint, "pause", reason, as_json=as_json)


@app.command()
@fails_clearly
def resume(endpoint: EndpointName, *, reason: Reason = "", as_json: Json = False) -> None:
    """Go on after a pause."""
    _act(endpoint, "resume", reason, as_json=as_json)


@app.command()
@fails_clearly
def extend(endpoint: EndpointName, *, reason: Reason = "", as_json: Json = False) -> None:
    """Give the step its whole time again."""
    _act(endpoint, "extend", reason, as_json=as_json)


@app.command()
@fails_clearly
def approve(endpoint: EndpointName, *, reason: Reason = "", as_json: Json = False) -> None:
    """Approve the step that asks for it."""
    _act(endpoint, "approve", reason, as_json=as_json)


@app.command()
@fails_clearly
def abort(endpoint: EndpointName, *, reason: Reason = "", as_json: Json = False) -> None:
    """All traffic back to the stable version, now. Nothing happens when no rollout is active."""
    _act(endpoint, "abort", reason, as_json=as_json)


@app.command()
@fails_clearly
def back(endpoint: EndpointName, *, reason: Reason = "", as_json: Json = False) -> None:
    """Go back to the version that the newest rollout replaced: at once while it is still warm."""
    row = Control().call("POST", f"/api/endpoints/{endpoint}/rollback/", {"reason": reason})
    emit(row, as_json=as_json, text=_shown(row))


@app.command()
@fails_clearly
def history(endpoint: EndpointName, *, as_json: Json = False) -> None:
    """List what the newest rollout of ENDPOINT did and why."""
    control = Control()
    rows = control.call("GET", f"/api/rollouts/{_newest(control, endpoint)['id']}/events/")
    emit(rows, as_json=as_json, text=table(["at", "phase", "share", "by", "what"], [_event(row) for row in rows]))


@app.command()
@fails_clearly
def plans(*, as_json: Json = False) -> None:
    """List the templates and your teams' own plans."""
    rows = Control().call("GET", "/api/plans/")
    shown = [(row["name"], row["team"] or "template", row["number"] or "", row["description"]) for row in rows]
    emit(rows, as_json=as_json, text=table(["plan", "of", "number", "what it does"], shown))


@app.command(name="save-plan")
@fails_clearly
def save_plan(
    file: Annotated[Path, typer.Argument(help="JSON: name, steps, settings.", exists=True, dir_okay=False)],
    *,
    team: Annotated[str, typer.Option(help="Whose it shall be, where you are in more than one.")] = "",
    as_json: Json = False,
) -> None:
    """Save a plan of your own, or a new number of one."""
    body = {"plan": _read(file)} | ({"team": team} if team else {})
    row = Control().call("POST", "/api/plans/", body)
    emit(row, as_json=as_json, text=f"saved {row['name']} number {row['number']}")


def _number(control: Control, endpoint: str, version: str) -> int:
    text = version.removeprefix("v")
    if text.isascii() and text.isdigit():
        return int(text)
    if not version.startswith("@"):
        raise ControlError(f"'{version}' is neither a version's number nor @ALIAS", code="malformed")
    model = control.call("GET", f"/api/endpoints/{endpoint}/")["model"]
    return resolve(control, f"{model}{version}")[1]


def _plan(name: str) -> Any:
    if not name:
        return None
    return _read(Path(name)) if name.endswith(".json") else name


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ControlError(f"{file} cannot be read as JSON: {error}", code="malformed") from error


def _newest(control: Control, endpoint: str) -> dict[str, Any]:
    control.call("GET", f"/api/endpoints/{endpoint}/")  # says clearly when there is none of that name
    rows = control.call("GET", "/api/rollouts/", endpoint=endpoint, page_size=1)["results"]
    if not rows:
        raise ControlError(
            f"endpoint '{endpoint}' has had no rollout: start one with 'serinus rollout start'", code="not_found"
        )
    found: dict[str, Any] = rows[0]
    return found


def _act(endpoint: str, verb: str, reason: str, *, as_json: bool) -> None:
    control = Control()
    row = control.call("POST", f"/api/rollouts/{_newest(control, endpoint)['id']}/{verb}/", {"reason": reason})
    emit(row, as_json=as_json, text=_shown(row))


def _watch(control: Control, identity: str, *, as_json: bool) -> None:
    """Follows a rollout; with JSON a line for every change. Exit status 1 unless it succeeds."""
    read = _reader(control, identity)
    row = read()
    if as_json:
        last = None
        while True:
            if row["revision"] != last or row["phase"] in FINAL:
                emit(row, as_json=True)
                last = row["revision"]
            if row["phase"] in FINAL:
                break
            time.sleep(POLL_S)
            row = read()
    else:
        with Live(_shown(row), console=out, refresh_per_second=4) as live:
            while row["phase"] not in FINAL:
                time.sleep(POLL_S)
                row = read()
                live.update(_shown(row))
    if row["phase"] != "succeeded":
        raise typer.Exit(1)


def _reader(control: Control, identity: str) -> Callable[[], dict[str, Any]]:
    def read() -> dict[str, Any]:
        found: dict[str, Any] = control.patiently(lambda: control.call("GET", f"/api/rollouts/{identity}/"))
        return found

    return read


def _shown(row: dict[str, Any]) -> RenderableType:
    judgement = row.get("judgement") or {}
    head = Table(box=None, show_header=False, pad_edge=False)
    step = min(row["step"] + 1, len(row["steps"]))
    phase = row["phase"].replace("_", " ")
    head.add_row("rollout", f"{row['endpoint']}: version {row['stable']} -> {row['candidate']} by '{row['plan_name']}'")
    head.add_row("phase", f"[bold]{phase}[/]  {row['words']}")
    head.add_row("step", f"{step} of {len(row['steps'])}: {row['steps'][step - 1]}")
    head.add_row("candidate", f"{row['weight_bp'] / 100:g} % of the traffic, {row['mirror_bp'] / 100:g} % copied")
    if judgement:
        head.add_row("judge", f"{judgement['verdict']}: {judgement['words']}")
    rows = [_finding(one) for one in judgement.get("findings", []) if one["verdict"] != "no_data"]
    if not rows:
        return head
    columns = ["metric", "stable", "candidate", "difference", "interval", "margin", "verdict", "needs"]
    return Group(head, "", table(columns, rows))


def _finding(one: dict[str, Any]) -> tuple[str, ...]:
    low, high = _percent(one["lower"]), _percent(one["upper"])
    more = one["needed_requests"]
    return (
        one["metric"], _percent(one["stable"]), _percent(one["canary"]), _percent(one["difference"]), f"{low} .. {high}",
        _percent(one["margin"]), one["verdict"], f"{more:,} more" if more else "",
    )  # fmt: skip


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _event(row: dict[str, Any]) -> tuple[str, ...]:
    shares = [f"v{number} {share / 100:g} %" for number, share in row["weights_after"].items() if number != "mirror"]
    return row["at"][11:19], row["phase_after"], ", ".join(shares), row["actor"], row["words"]


def _preview(row: dict[str, Any]) -> RenderableType:
    found = row["preflight"]
    steps = table(["", "step"], [(place, step) for place, step in enumerate(row["steps"], 1)])
    lines = [f"[bold red]blocks:[/] {one}" for one in found["blockers"]] + [f"note: {one}" for one in found["warnings"]]
    if found["duration"].get("words"):
        lines.append(f"time: {found['duration']['words']}")
    return Group(steps, *lines)
