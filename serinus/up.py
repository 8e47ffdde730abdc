"""`serinus up`: everything on one machine, in order, under one process supervisor."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import httpx

from serinus.paths import UpConfig, private_dir, write_private
from serinus.processes import (
    SECRETS,
    SERVICE,
    Program,
    StartError,
    Supervisord,
    control_programs,
    gateway_program,
    host_programs,
    repository_programs,
    wait_for,
)
from serinus.services import Postgres, Valkey

Say = Callable[[str], None]


class AlreadyRunning(RuntimeError):
    """Another start holds this data folder."""


def hold(data_dir: Path) -> TextIO:
    """Takes the data folder's lock for the life of this process. Raises AlreadyRunning with the holder's pid."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = (data_dir / "up.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        raise AlreadyRunning(
            f"Serinus already runs in {data_dir} (process {holder}). Stop it with Ctrl-C there or 'kill {holder}', "
            "or choose another folder with SERINUS_DATA_DIR."
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def check_ports(config: UpConfig) -> None:
    """Raises StartError naming the port and its variable when one is taken."""
    ports = {
        "SERINUS_CONSOLE_PORT": config.console_port,
        "SERINUS_HTTP_PORT": config.http_port,
        "SERINUS_GRPC_PORT": config.grpc_port,
    }
    for variable, port in ports.items():
        if not port:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((config.host, port))
            except OSError as error:
                raise StartError(
                    f"port {port} on {config.host} is taken ({error.strerror}): stop what listens there, "
                    f"or choose another one, for example {variable}={port + 10}"
                ) from error


def static_build() -> str:
    """Changes whenever a file of the front end changes, so that browsers may keep the old ones for ever."""
    root = Path(__file__).resolve().parents[1] / "frontend" / "static"
    mark = hashlib.sha256()
    for file in sorted(root.rglob("*")):
        if file.is_file():
            mark.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return mark.hexdigest()[:12]


class Platform:
    """One start of everything. `start`, then `wait`, then `stop`; stop is safe at any time."""

    def __init__(self, config: UpConfig, say: Say) -> None:
        self.config = config
        self.say = say
        self.started_s = time.monotonic()
        self._lock = hold(config.data_dir)
        check_ports(config)
        for folder in (config.data_dir, config.run_dir, config.log_dir, config.runtime_dir):
            private_dir(folder)
        self.postgres = None if config.database_url else Postgres(config)
        self.valkey = None if config.redis_url else Valkey(config)
        self.environment = self._environment()
        # The first admin's password is for the first start's bootstrap alone; no lasting process keeps it.
        lasting = {name: value for name, value in self.environment.items() if name != "SERINUS_ADMIN_PASSWORD"}
        self.supervisor = Supervisord(config, self._programs(), lasting)

    def _programs(self) -> list[Program]:
        services = []
        if self.postgres:
            # setpriv changes the user, which forgets the death signal: it sets that itself, last.
            as_other = bool(self.postgres.user)
            command = self.postgres.command()
            blank = dict.fromkeys(SECRETS.split(","), "")
            services.append(
                Program(
                    "postgres",
                    command,
                    "INT",
                    30,
                    dies_with_parent=not as_other,
                    yields=True,
                    stage=SERVICE,
                    environment=blank,
                )
            )
        if self.valkey:
            services.append(Program("valkey", self.valkey.command(), stage=SERVICE, unset=SECRETS))
        ours = [*host_programs(self.config), *control_programs(self.config), *repository_programs(self.config)]
        return [*services, *ours, gateway_program()]

    def _environment(self) -> dict[str, str]:
        """What every program sees; services must be prepared, so that their passwords exist."""
        config = self.config
        if self.postgres:
            self.postgres.prepare()
        if self.valkey:
            self.valkey.prepare()
        database = self.postgres.url() if self.postgres else config.database_url
        redis = self.valkey.url() if self.valkey else config.redis_url
        key_file = config.data_dir / "secret_key"
        if not key_file.exists():
            write_private(key_file, secrets.token_urlsafe(50))
        ours = {
            "SERINUS_DATA_DIR": str(config.data_dir),
            "SERINUS_RUNTIME_DIR": str(config.runtime_dir),
            "SERINUS_HOST": config.host,
            "SERINUS_CONSOLE_PORT": str(config.console_port),
            "SERINUS_HTTP_PORT": str(config.http_port),
            "SERINUS_GRPC_PORT": str(config.grpc_port),
            "SERINUS_HOST_NAME": config.host_name,
            "SERINUS_GATEWAY_URL": config.gateway_url,
            "SERINUS_CONSOLE_URL": config.console_url,
            "SERINUS_INSECURE": "1" if config.insecure else "0",
            "SERINUS_SERVER_NAME": config.server_name,
            "SERINUS_ALLOW_CLIENT_SHM": "1" if config.allow_client_shm else "0",
            "SERINUS_STATIC_BUILD": static_build(),
            "SERINUS_MODEL_REPOSITORY": str(config.model_repository or ""),
            "SERINUS_MODEL_CONTROL_MODE": config.model_control_mode,
            "SERINUS_LOAD_MODELS": ",".join(config.load_models),
            "DATABASE_URL": database,
            "REDIS_URL": redis,
            "DJANGO_SETTINGS_MODULE": "config.settings",
        }
        write_private(config.run_dir / "environment.json", json.dumps(ours, indent=1))
        return {**os.environ, **ours, "PYTHONUNBUFFERED": "1"}

    def start(self) -> dict[str, Any]:
        """1 services, 2 rows, 3 every process, 4 wait until console, gateway and host answer.

        The replica supervisor starts first of all: its standby imports torch and JAX meanwhile. Returns the
        credentials, with `admin_password` only at the first start. Raises StartError.
        """
        self.supervisor.start()
        self._services()
        self.supervisor.run("host")
        self.say("database: migrations and first admin")
        first = self._manage("bootstrap", "--migrate")
        self.say("console, gateway, control worker, host agent")
        self.supervisor.run("gateway", "console", "control", "jobs", "beat", "agent")
        self._until_ready()
        for program in repository_programs(self.config):
            self.supervisor.run(program.name)
        found: dict[str, Any] = json.loads(first)
        return found

    def _services(self) -> None:
        if self.postgres:
            self.say("PostgreSQL")
            self.supervisor.run("postgres")
        if self.valkey:
            self.supervisor.run("valkey")
            wait_for("valkey", self.valkey.answers, self.supervisor, timeout_s=20)
        if self.postgres:
            wait_for("postgres", self.postgres.answers, self.supervisor, timeout_s=60)
            self.postgres.make_database()

    def _manage(self, *words: str) -> str:
        """Runs a management command; its standard output. Raises StartError with the end of what it said."""
        command = [sys.executable, "-m", "django", *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode:
            raise StartError(f"'{words[0]}' failed:\n" + "\n".join(done.stderr.strip().splitlines()[-6:]))
        return done.stdout

    def _until_ready(self) -> None:
        """With one client: each would read all certificates that are trusted, while everything else wants to start."""
        with httpx.Client(timeout=2) as client:

            def answers(url: str) -> bool:
                try:
                    return client.get(url).status_code == 200
                except httpx.HTTPError:
                    return False

            gateway, console = self.config.gateway_url + "/v2/health/live", self.config.console_url + "/readyz"
            wait_for("gateway", lambda: answers(gateway), self.supervisor, timeout_s=60)
            wait_for("console", lambda: answers(console), self.supervisor, timeout_s=60)

    def wait(self) -> int:
        """Blocks until a signal asks to stop, or until the process supervisor ends by itself."""

        def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, stop)
        with suppress(KeyboardInterrupt):
            return self.supervisor.wait() or 1
        return 0

    def stop(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.supervisor.stop()
        for folder in (self.config.runtime_dir, self.config.postgres_socket_dir):
            remove_runtime(folder)
        self._lock.close()


def remove_runtime(folder: Path) -> None:
    """Removes what a stopped platform leaves in its runtime folder: sockets and empty folders, nothing else."""
    with suppress(OSError):
        for path in sorted(folder.rglob("*"), reverse=True):
            if path.is_socket():
                path.unlink()
            elif path.is_dir():
                path.rmdir()
        folder.rmdir()


def joined_environment(config: UpConfig) -> dict[str, str]:
    """The environment of one more process of a running platform: what its start wrote, under what is set here."""
    file = config.run_dir / "environment.json"
    saved: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    environment = {**saved, **os.environ, "PYTHONUNBUFFERED": "1", "DJANGO_SETTINGS_MODULE": "config.settings"}
    missing = [name for name in ("DATABASE_URL", "REDIS_URL") if not environment.get(name)]
    if missing:
        raise StartError(f"set {' and '.join(missing)} to the platform's services, or run this in its folder")
    return environment
