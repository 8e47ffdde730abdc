"""Where `serinus` keeps things, and what it reads from the environment. Parsed once, frozen afterwards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inference import config as engine

MODES = ("none", "poll", "explicit")


@dataclass(frozen=True, slots=True)
class UpConfig:
    """Everything that `serinus up` needs to know.

    model_repository: a folder in Triton's form that is served too; model_control_mode: one of MODES, "" without such a
    folder; load_models: what is loaded at the start in the mode explicit.
    """

    data_dir: Path
    runtime_dir: Path
    host: str
    console_port: int
    http_port: int
    grpc_port: int
    host_name: str
    database_url: str
    redis_url: str
    insecure: bool
    model_repository: Path | None = None
    model_control_mode: str = ""
    load_models: tuple[str, ...] = ()
    server_name: str = "serinus"
    allow_client_shm: bool = False

    @property
    def console_url(self) -> str:
        return f"http://{self.host}:{self.console_port}"

    @property
    def gateway_url(self) -> str:
        return f"http://{self.host}:{self.http_port}"

    @property
    def run_dir(self) -> Path:
        """What lives as long as one start: process table, logs' neighbours, service URLs."""
        return self.data_dir / "run"

    @property
    def log_dir(self) -> Path:
        return self.data_dir / "logs"

    @property
    def postgres_socket_dir(self) -> Path:
        """Short and apart from the runtime folder: the cluster may belong to another user."""
        return self.runtime_dir.with_name(self.runtime_dir.name + "-pg")


def up_config(env: Mapping[str, str] = os.environ) -> UpConfig:
    """Raises inference.config.BadSetting with the variable's name."""
    return UpConfig(
        data_dir=engine.data_dir(env),
        runtime_dir=engine.runtime_dir(env),
        host=env.get("SERINUS_HOST") or "127.0.0.1",
        console_port=engine.integer(env, "SERINUS_CONSOLE_PORT", 8080, 1, 65535),
        http_port=engine.integer(env, "SERINUS_HTTP_PORT", 8000, 1, 65535),
        grpc_port=engine.integer(env, "SERINUS_GRPC_PORT", 8001, 0, 65535),
        host_name=env.get("SERINUS_HOST_NAME") or os.uname().nodename.split(".")[0],
        database_url=env.get("DATABASE_URL", ""),
        redis_url=env.get("REDIS_URL", ""),
        insecure=engine.flag(env, "SERINUS_INSECURE"),
        server_name=env.get("SERINUS_SERVER_NAME") or "serinus",
        allow_client_shm=engine.flag(env, "SERINUS_ALLOW_CLIENT_SHM"),
    )


def private_dir(path: Path, mode: int = 0o700) -> Path:
    """Makes the folder if missing; raises PermissionError when somebody else owns it."""
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to somebody else: remove it or set SERINUS_RUNTIME_DIR")
    path.chmod(mode)
    return path


def write_private(path: Path, text: str) -> None:
    """Writes a 0600 file atomically."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.rename(path)
