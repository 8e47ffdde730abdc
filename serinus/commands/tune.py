"""The command that tries batching settings on the real replica: autotune."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from serinus import autotune as sweep
from serinus.commands.models import inputs_given
from serinus.commands.traffic import wait_ready
from serinus.control import Control, ControlError
from serinus.offered import Target, play
from serinus.output import Json, emit, err, fails_clearly, table

SAMPLE_TEXT = "a serinus sings at every window of the house"
TRIAL_SUFFIX = "-autotune"


@fails_clearly
def autotune(
    endpoint: str,
    *,
    max_batch_sizes: Annotated[str, typer.Option(help="Sizes to try.")] = "1,8,32",
    windows_ms: Annotated[str, typer.Option(help="Windows to try with each size.")] = "0,5",
    delays_us: Annotated[str, typer.Option(help="Maximum queue delays to try with each size.")] = "",
    text: Annotated[str, typer.Option(help="Text for a model with one text input.")] = "",
    data: Annotated[str, typer.Option(help="JSON inputs, as for predict; made from the signature when missing.")] = "",
    connections: Annotated[int, typer.Option(min=1, max=1024)] = 32,
    seconds: Annotated[float, typer.Option(min=0.5, max=120, help="Each load lasts so long.")] = 3.0,
    objective_ms: Annotated[float, typer.Option(min=0, help="A p99 to be held.")] = 0.0,
    report: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("autotune"),
    timeout_s: Annotated[float, typer.Option(help="Give up waiting for a version or a replica after this long.")] = 300,
    as_json: Json = False,
) -> None:
    """Try batch sizes and windows on real replicas of an endpoint's model, and write a report with advice.

    Each candidate is a version of its own out of the same files, behind an endpoint of its own, so live traffic goes on.
    """
    control = Control()
    row = control.call("GET", f"/api/endpoints/{endpoint}/")
    served = max(row["variants"], key=lambda one: one["weight_bp"])["version"]
    version = control.call("GET", f"/api/models/{row['model']}/versions/{served}/")
    grid = sweep.grid(_ints(max_batch_sizes), _numbers(windows_ms, float), _ints(delays_us))
    found = sweep.Report(endpoint, row["model"], connections, objective_ms)
    bodies = _bodies(control, endpoint, text, data)
    trial = Trial(control, version, endpoint + TRIAL_SUFFIX, bodies, connections, seconds, timeout_s)
    for number, settings in enumerate(grid, 1):
        if not as_json:
            err.print(f"[dim]{number}/{len(grid)}[/] {sweep.words(settings)}")
        found.candidates.append(trial.run(settings))
    trial.archive_all_but(found.advised)
    page = _write(found, report)
    shown = table(sweep.columns(), sweep.rows(found))
    emit(found.as_json() | {"report": str(page)}, as_json=as_json, text=shown)
    if not as_json:
        err.print(f"report: {page}")


@dataclass(slots=True)
class Trial:
    """Runs one candidate after another on the files of `version`."""

    control: Control
    version: dict[str, Any]
    endpoint: str
    bodies: list[bytes]
    connections: int
    seconds: float
    timeout_s: float
    made: list[int] = field(default_factory=list)

    def run(self, settings: dict[str, Any]) -> sweep.Candidate:
        """1. A version with these settings. 2. Behind the trial's endpoint. 3. Both loads. 4. The endpoint goes."""
        control, model = self.control, self.version["model"]
        number = self._upload(settings)
        body = {"name": self.endpoint, "model": model, "version": number, "replicas": 1}
        control.call("POST", "/api/endpoints/", body)
        try:
            wait_ready(control, self.endpoint, number, self.timeout_s)
            path = f"/v2/models/{self.endpoint}/infer"
            target = Target(control.gateway_url, path, control.key, self.bodies)
            self._wait_served(target)
            fast, steady = play(
                target, connections=self.connections, seconds=self.seconds, share=sweep.OPEN_SHARE
            )  # fmt: skip
        finally:
            control.call("DELETE", f"/api/endpoints/{self.endpoint}/")
        return sweep.Candidate(settings, fast, steady, number)

    def archive_all_but(self, kept: sweep.Candidate | None) -> None:
        for number in self.made:
            if kept is None or number != kept.version:
                path = f"/api/models/{self.version['model']}/versions/{number}/archive/"
                self.control.patiently(lambda path=path: self.control.call("POST", path, {"reason": "autotune"}))  # type: ignore[misc]

    def _upload(self, settings: dict[str, Any]) -> int:
        control, model = self.control, self.version["model"]
        files = [{"path": file["path"], "sha256": file["sha256"]} for file in self.version["files"]]
        # A maximum delay replaces the window; what a candidate does not say stays as it is served.
        body = {"files": files, "runtime": {**self.version["settings"], **settings}}
        made = control.patiently(lambda: control.call("POST", f"/api/models/{model}/versions/", body), twice=False)
        made = control.wait_version(model, made["number"], lambda _: None, self.timeout_s)
        if made["status"] != "ready":
            raise ControlError(f"{sweep.words(settings)}: the version is {made['status']}: {made.get('reason', '')}")
        if made["number"] != self.version["number"]:
            self.made.append(made["number"])
        return int(made["number"])

    def _wait_served(self, target: Target) -> None:
        """The gateway's table may be a moment behind the control plane's."""
        from inference.client import Client

        client = Client(self.control.gateway_url, self.control.key)
        body = json.loads(self.bodies[0])
        self.control.patiently(lambda: _asked(client, self.endpoint, body["inputs"]))


def _asked(client: Any, endpoint: str, inputs: list[dict[str, Any]]) -> Any:
    from inference.errors import NotFound, NotReady, Unauthenticated

    try:
        return client.infer(endpoint, inputs)
    except (NotFound, NotReady, Unauthenticated) as error:
        raise ControlError(error.message, code="unavailable") from error


def _bodies(control: Control, endpoint: str, text: str, data: str) -> list[bytes]:
    from inference.client import Client

    metadata = Client(control.gateway_url, control.key).metadata(endpoint)
    inputs = inputs_given(metadata, text, data) if text or data else [_sample(spec) for spec in metadata["inputs"]]
    return [json.dumps({"inputs": inputs}).encode()]


def _sample(spec: dict[str, Any]) -> dict[str, Any]:
    """One row of a value that any model takes: 0.5 for floats, 1 for integers and truth values, a sentence for text."""
    shape = [size if size > 0 else 1 for size in spec["shape"]]
    count = 1
    for size in shape:
        count *= size
    kind = spec["datatype"]
    value: Any = SAMPLE_TEXT if kind == "BYTES" else True if kind == "BOOL" else 0.5 if kind.startswith("FP") else 1
    return {"name": spec["name"], "datatype": kind, "shape": shape, "data": [value] * count}


def _write(found: sweep.Report, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plot.svg").write_text(sweep.svg(found), encoding="utf-8")
    page = folder / "report.md"
    page.write_text(sweep.markdown(found, "plot.svg"), encoding="utf-8")
    return page


def _ints(words: str) -> list[int]:
    return _numbers(words, int)


def _numbers(words: str, kind: type) -> list[Any]:
    try:
        return [kind(word) for word in words.split(",") if word.strip()]
    except ValueError as error:
        raise ControlError(f"'{words}' is no list of numbers, as in 1,8,32", code="malformed") from error


def register(app: typer.Typer) -> None:
    app.command()(autotune)
