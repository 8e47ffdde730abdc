"""Commands that run parts of the platform on this machine: up, gateway, worker, doctor, bench."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.panel import Panel

from inference.config import BadSetting, is_loopback
from serinus import doctor as checks
from serinus.demo_deploy import Demo
from serinus.output import Json, emit, err, fails_clearly, out, table
from serinus.paths import MODES, UpConfig, private_dir, up_config
from serinus.processes import StartError, Supervisord, host_programs
from serinus.up import Platform, joined_environment, remove_runtime

VARIABLES = """
Environment (all optional):

SERINUS_DATA_DIR (./.serinus): everything that is kept.

SERINUS_HOST (127.0.0.1), SERINUS_CONSOLE_PORT (8080), SERINUS_HTTP_PORT (8000), SERINUS_GRPC_PORT (8001).

SERINUS_ADMIN_PASSWORD: the first admin's password; made up and printed once when not set.

DATABASE_URL, REDIS_URL: outside services; embedded PostgreSQL and Valkey when not set.

SERINUS_ARTIFACTS: folder of the artifact store (SERINUS_DATA_DIR/artifacts).

SERINUS_REPOSITORY_POLL_S (15): how often --model-control-mode poll looks at the folder.

SERINUS_SERVER_NAME, SERINUS_ALLOW_CLIENT_SHM, SERINUS_HTTP_HEADER_FORWARD_PATTERN, SERINUS_HOST_NAME,
SERINUS_RUNTIME_DIR, SERINUS_INSECURE, SERINUS_LONE_ADMIN_APPROVES, SERINUS_OTEL_ENDPOINT, SERINUS_TRACE_EVERY,
SERINUS_SHARED_RESPONSES_BYTES: see docs/configuration.md.
"""


SharesMemory = Annotated[
    bool, typer.Option("--allow-client-shm", help="Clients of this machine may pass tensors in shared memory.")
]
ServerName = Annotated[str, typer.Option(help="The name that /v2 answers; some clients of Triton want 'triton'.")]


def _exec(command: list[str], environment: dict[str, str]) -> None:
    os.execve(command[0], command, environment)  # noqa: S606


@fails_clearly
def up(
    *,
    demo: Annotated[bool, typer.Option("--demo", help="Also upload and deploy the demo models.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="Predictions need no key (loopback only).")] = False,
    model_repository: Annotated[
        Path | None, typer.Option(help="Also serve this Triton model repository.", exists=True, file_okay=False)
    ] = None,
    model_control_mode: Annotated[
        str, typer.Option(help="none: import all at the start; poll: follow the folder; explicit: what load asks for.")
    ] = "none",
    load_model: Annotated[
        list[str] | None, typer.Option(help="Load this model at the start (mode explicit); '*' is all.")
    ] = None,
    allow_client_shm: SharesMemory = False,
    server_name: ServerName = "",
    as_json: Json = False,
) -> None:
    config = _with_repository(up_config(), model_repository, model_control_mode, load_model or [])
    config = replace(
        config,
        insecure=insecure or config.insecure,
        allow_client_shm=allow_client_shm or config.allow_client_shm,
        server_name=server_name or config.server_name,
    )
    _check_host(config)
    steps = err.status("starting") if sys.stderr.isatty() else None

    def say(text: str) -> None:
        if steps:
            steps.update(text)
        else:
            err.print(f"{time.monotonic() - began:5.1f} s  {text}")

    began = time.monotonic()
    platform = Platform(config, say)
    models = Demo(config, say) if demo else None
    try:
        with steps or nullcontext():
            shown = platform.start()
            if models:
                shown = {**shown, **models.run(platform.started_s)}
        _welcome(config, shown, platform, as_json=as_json)
        code = platform.wait()
    finally:
        err.print("stopping")
        if models:
            models.close()
        platform.stop()
    if code:
        raise StartError(f"the process supervisor ended by itself: see {config.log_dir}")


def _check_host(config: UpConfig) -> None:
    """Raises BadSetting where --insecure would be open to other machines."""
    if config.insecure and not is_loopback(config.host):
        raise BadSetting(f"--insecure needs SERINUS_HOST on loopback, not {config.host!r}")


def _with_repository(config: UpConfig, root: Path | None, mode: str, names: list[str]) -> UpConfig:
    """Raises BadSetting for options that would be passed over."""
    if mode not in MODES:
        raise BadSetting(f"--model-control-mode {mode!r}: must be one of {', '.join(MODES)}")
    if names and (root is None or mode != "explicit"):
        raise BadSetting("--load-model needs --model-repository and --model-control-mode explicit")
    if root is None:
        if mode != MODES[0]:
            raise BadSetting("--model-control-mode needs --model-repository")
        return config
    return replace(config, model_repository=root.resolve(), model_control_mode=mode, load_models=tuple(names))


def _welcome(config: UpConfig, shown: dict[str, Any], platform: Platform, *, as_json: bool) -> None:
    seconds = time.monotonic() - platform.started_s
    value = {
        **shown,
        "console_url": config.console_url,
        "gateway_url": config.gateway_url,
        "seconds": round(seconds, 1),
    }
    password = shown.get("admin_password")
    lines = [
        f"Console   [bold]{config.console_url}[/]",
        f"Log in    as [bold]{shown.get('admin_user', 'admin')}[/]"
        + (f" with the password [bold]{password}[/] (shown once)" if password else ", with your password"),
        f"Gateway   [bold]{config.gateway_url}[/]",
        f"Data      {config.data_dir}",
        f"Up after  {seconds:.1f} s"
        + (f", demo model answered after {shown['demo_s']} s" if "demo_s" in shown else ""),
    ]
    emit(value, as_json=as_json, text=None)
    if not as_json:
        out.print(Panel("\n".join(lines), title="Serinus is up", border_style="yellow"))
        if shown.get("curl"):
            out.print("Try it:\n")
            sys.stdout.write(shown["curl"] + "\n\n")
        if shown.get("chat"):
            sys.stdout.write(shown["chat"] + "\n\n")
        out.print("Ctrl-C stops everything.")
    sys.stdout.flush()


@fails_clearly
def gateway(
    port: Annotated[int, typer.Option(help="Port to listen on.", envvar="SERINUS_HTTP_PORT")] = 8010,
    grpc_port: Annotated[int, typer.Option(help="Port for gRPC; 0 for none.", envvar="SERINUS_GRPC_PORT")] = 8011,
    host: Annotated[str, typer.Option(help="Address to listen on.", envvar="SERINUS_HOST")] = "127.0.0.1",
    allow_client_shm: SharesMemory = False,
    server_name: ServerName = "",
) -> None:
    """Start one more gateway of a running platform, in the foreground."""
    config = up_config()
    environment = joined_environment(config) | {
        "SERINUS_HTTP_PORT": str(port), "SERINUS_GRPC_PORT": str(grpc_port), "SERINUS_HOST": host
    }  # fmt: skip
    environment |= {"SERINUS_ALLOW_CLIENT_SHM": "1"} if allow_client_shm else {}
    environment |= {"SERINUS_SERVER_NAME": server_name} if server_name else {}
    environment.pop("DATABASE_URL", None)
    _exec([sys.executable, "-m", "inference", "gateway"], environment)


@fails_clearly
def worker(
    name: Annotated[str, typer.Option(help="This host's name in the cluster.", envvar="SERINUS_HOST_NAME")] = "",
) -> None:
    """Join a running platform as one more host that serves replicas, in the foreground.

    Needs DATABASE_URL, REDIS_URL and the artifact store (SERINUS_ARTIFACTS on a shared file system).
    """
    config = up_config()
    config = replace(config, host_name=name or config.host_name)
    environment = joined_environment(config)
    data = config.data_dir / "hosts" / config.host_name
    runtime = config.runtime_dir.with_name(f"{config.runtime_dir.name}-{config.host_name}")
    environment |= {
        "SERINUS_HOST_NAME": config.host_name,
        "SERINUS_ARTIFACTS": environment.get("SERINUS_ARTIFACTS") or str(config.data_dir / "artifacts"),
        "SERINUS_DATA_DIR": str(data),
        "SERINUS_RUNTIME_DIR": str(runtime),
    }
    key = config.data_dir / "secret_key"
    if key.exists():
        environment.setdefault("SERINUS_SECRET_KEY", key.read_text())
    ours = replace(config, data_dir=data, runtime_dir=runtime)
    for folder in (ours.data_dir, ours.run_dir, ours.log_dir, ours.runtime_dir):
        private_dir(folder)
    supervisor = Supervisord(ours, host_programs(ours), environment)
    supervisor.start()
    supervisor.run("host", "agent")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    err.print(f"host [bold]{ours.host_name}[/] serves; Ctrl-C drains and stops it")
    try:
        supervisor.wait()
    except KeyboardInterrupt:
        err.print("draining")
    finally:
        supervisor.stop()
        remove_runtime(runtime)


def doctor(*, as_json: Json = False) -> None:
    """Tell what is missing or wrong on this machine, and what to do about it."""
    found = checks.examine(up_config())
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[bold red]wrong[/]"}
    rows = [
        (marks[line.state], line.name, line.message + (f" -> {line.remedy}" if line.remedy else "")) for line in found
    ]
    emit([line.as_dict() for line in found], as_json=as_json, text=table(["", "what", "finding"], rows))
    if any(line.state == "wrong" for line in found):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    app.command(help="Start everything on this machine and supervise it.\n\n" + VARIABLES)(up)
    app.command()(gateway)
    app.command()(worker)
    app.command()(doctor)
