"""Configuration of the engine's processes, parsed once at process start from the environment; frozen afterwards.

A bad value stops the start with the variable's name and what is allowed.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class BadSetting(ValueError):
    """A variable of the environment has a value that is not allowed."""


def integer(env: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """The variable as a whole number; `default` when unset. Raises BadSetting."""
    text = env.get(name, "") or str(default)
    if not text.lstrip("-").isdigit() or not low <= int(text) <= high:
        raise BadSetting(f"{name}={text!r}: must be a whole number from {low} to {high}")
    return int(text)


def flag(env: Mapping[str, str], name: str) -> bool:
    """The variable as a switch; off when unset. Raises BadSetting."""
    text = (env.get(name, "") or "0").lower()
    if text not in {"0", "1", "true", "false", "yes", "no"}:
        raise BadSetting(f"{name}={text!r}: must be 1 or 0")
    return text in {"1", "true", "yes"}


def url(env: Mapping[str, str], name: str) -> str:
    """The variable as an HTTP address; "" when unset. Raises BadSetting."""
    text = env.get(name, "")
    if text and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", text):
        raise BadSetting(f"{name}={text!r}: must be http://HOST:PORT or https://HOST:PORT")
    return text


def pattern(env: Mapping[str, str], name: str) -> re.Pattern[str] | None:
    """The variable as a regular expression that ignores case; None when unset. Raises BadSetting."""
    text = env.get(name, "")
    try:
        return re.compile(text, re.IGNORECASE) if text else None
    except re.error as error:
        raise BadSetting(f"{name}={text!r}: must be a regular expression ({error})") from error


def is_loopback(host: str) -> bool:
    """Whether this name or address means this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """What `python -m inference gateway` reads from its environment.

    die_with_parent: end when the process that started this one ends, however it ends; `serinus up` sets it.
    grpc_port: 0 for no gRPC; max_grpc_message_bytes: of one message, after decompression.
    allow_client_shm: clients of this machine may pass tensors in shared memory. header_forward_pattern: request
    headers whose names it finds become parameters of the model. otel_endpoint: OTLP/HTTP collector of traces, "" for
    none; trace_every: every so many requests of an endpoint one is traced from the start on, 0 for none.
    shared_responses_bytes: of stored `/v1/responses` in Valkey for all gateways, 0 for each gateway its own.
    """

    host: str
    port: int
    data_dir: Path
    redis_url: str
    insecure: bool
    server_name: str
    max_body_bytes: int
    drain_s: int
    console_url: str
    die_with_parent: bool = False
    grpc_port: int = 0
    max_grpc_message_bytes: int = 64 << 20
    allow_client_shm: bool = False
    header_forward_pattern: re.Pattern[str] | None = None
    otel_endpoint: str = ""
    trace_every: int = 0
    shared_responses_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class SupervisorConfig:
    """What `python -m inference supervisor` reads from its environment.

    runtime_dir: short folder (0700) for sockets; artifacts_dir: the content-addressed store, read-only here except
    for blobs that a conversion makes; fake_devices: extra devices for tests, "cuda:2" = two fake CUDA devices.
    heartbeat_s: a ready replica that is silent for longer is replaced; load_timeout_s: so long may a load take.
    """

    data_dir: Path
    runtime_dir: Path
    artifacts_dir: Path
    socket: Path
    drain_s: int
    fake_devices: str
    heartbeat_s: int = 10
    load_timeout_s: int = 300
    validation_timeout_s: int = 300


def data_dir(env: Mapping[str, str] = os.environ) -> Path:
    return Path(env.get("SERINUS_DATA_DIR") or ".serinus").resolve()


def artifacts_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The folder of the store. Raises BadSetting for a URL scheme that this build does not have."""
    text = env.get("SERINUS_ARTIFACTS", "")
    if "://" in text:
        raise BadSetting(f"SERINUS_ARTIFACTS={text!r}: only a folder is supported by this version")
    return Path(text).resolve() if text else data_dir(env) / "artifacts"


def runtime_dir(env: Mapping[str, str] = os.environ) -> Path:
    """A short folder for unix sockets (their paths may have 107 bytes), one per data folder."""
    if env.get("SERINUS_RUNTIME_DIR"):
        return Path(env["SERINUS_RUNTIME_DIR"])
    mark = hashlib.sha256(str(data_dir(env)).encode()).hexdigest()[:10]
    return Path("/tmp") / f"serinus-{os.getuid()}-{mark}"  # noqa: S108 (0700, owner checked where it is made)


def gateway_config(env: Mapping[str, str] = os.environ) -> GatewayConfig:
    """Raises BadSetting, also for a gateway without keys that others than this machine could reach."""
    host = env.get("SERINUS_HOST") or "127.0.0.1"
    if flag(env, "SERINUS_INSECURE") and not is_loopback(host):
        raise BadSetting(f"SERINUS_INSECURE=1 needs SERINUS_HOST on loopback, not {host!r}")
    return GatewayConfig(
        host=host,
        port=integer(env, "SERINUS_HTTP_PORT", 8000, 1, 65535),
        data_dir=data_dir(env),
        redis_url=env.get("REDIS_URL", ""),
        insecure=flag(env, "SERINUS_INSECURE"),
        server_name=env.get("SERINUS_SERVER_NAME") or "serinus",
        max_body_bytes=integer(env, "SERINUS_MAX_BODY_BYTES", 64 << 20, 1 << 10, 1 << 30),
        drain_s=integer(env, "SERINUS_GATEWAY_DRAIN_S", 30, 0, 600),
        console_url=env.get("SERINUS_CONSOLE_URL") or "",
        die_with_parent=flag(env, "SERINUS_DIE_WITH_PARENT"),
        grpc_port=integer(env, "SERINUS_GRPC_PORT", 8001, 0, 65535),
        max_grpc_message_bytes=integer(env, "SERINUS_MAX_GRPC_MESSAGE_BYTES", 64 << 20, 1 << 10, 1 << 30),
        allow_client_shm=flag(env, "SERINUS_ALLOW_CLIENT_SHM"),
        header_forward_pattern=pattern(env, "SERINUS_HTTP_HEADER_FORWARD_PATTERN"),
        otel_endpoint=url(env, "SERINUS_OTEL_ENDPOINT"),
        trace_every=integer(env, "SERINUS_TRACE_EVERY", 0, 0, 1_000_000_000),
        shared_responses_bytes=integer(env, "SERINUS_SHARED_RESPONSES_BYTES", 64 << 20, 0, 1 << 36),
    )


def supervisor_config(env: Mapping[str, str] = os.environ) -> SupervisorConfig:
    run = runtime_dir(env)
    return SupervisorConfig(
        data_dir=data_dir(env),
        runtime_dir=run,
        artifacts_dir=artifacts_dir(env),
        socket=Path(env.get("SERINUS_SUPERVISOR_SOCKET") or run / "supervisor.sock"),
        drain_s=integer(env, "SERINUS_REPLICA_DRAIN_S", 20, 0, 600),
        fake_devices=env.get("SERINUS_FAKE_DEVICES", ""),
        heartbeat_s=integer(env, "SERINUS_HEARTBEAT_S", 10, 1, 600),
        load_timeout_s=integer(env, "SERINUS_LOAD_TIMEOUT_S", 300, 1, 86400),
        validation_timeout_s=integer(env, "SERINUS_VALIDATION_TIMEOUT_S", 300, 1, 86400),
    )
