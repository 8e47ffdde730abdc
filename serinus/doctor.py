"""What is missing or wrong on this machine. Each finding says what to do about it."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec

import httpx
import psutil

from serinus.paths import UpConfig

GIB = 1 << 30
LANDLOCK_CREATE_RULESET = 444
NEEDED = {"torch": "torch==2.13.0", "jax": "jax", "onnxruntime": "onnxruntime", "transformers": "transformers"}


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
    found = [_python(), *_packages(), _memory(), _disk(config), _sandbox(), _folder(config), _devices()]
    if running:
        return [*found, Finding("platform", "ok", f"answers at {config.console_url}"), *_parts(config)]
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
    if os.access(folder, os.W_OK):
        return Finding("data folder", "ok", str(config.data_dir))
    return Finding("data folder", "wrong", f"{folder} is not writable", "set SERINUS_DATA_DIR")


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
        return httpx.get(url, timeout=3).status_code == 200
    except httpx.HTTPError:
        return False
