"""`python -m config.server`: the console process. One process, granian's embedded server, a clean stop on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys

from granian.constants import Interfaces
from granian.server.embed import Server

from inference import config as engine


def address(env: dict[str, str]) -> tuple[str, int]:
    """Host and port. Raises inference.config.BadSetting."""
    return env.get("SERINUS_HOST") or "127.0.0.1", engine.integer(env, "SERINUS_CONSOLE_PORT", 8080, 1, 65535)


def taken(host: str, port: int) -> str:
    """Why the port cannot be listened on; empty when it can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


async def serve(host: str, port: int) -> None:
    """Serves until SIGTERM or SIGINT."""
    from config.asgi import application

    server = Server(
        application,
        address=host,
        port=port,
        interface=Interfaces.ASGINL,
        log_access=False,
        backlog=1024,
        websockets=True,
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    await server.serve()


def main() -> int:
    try:
        host, port = address(dict(os.environ))
    except engine.BadSetting as error:
        print(error, file=sys.stderr)  # noqa: T201 (the process's last word)
        return 2
    if not os.environ.get("SERINUS_SECRET_KEY") and not (engine.data_dir() / "secret_key").exists():
        print(  # noqa: T201 (the process's last word)
            "the console needs its secret: start it with 'serinus up', or set SERINUS_SECRET_KEY", file=sys.stderr
        )
        return 2
    why = taken(host, port)
    if why:
        print(  # noqa: T201 (the process's last word)
            f"the console cannot listen on {host}:{port}: {why}. Set SERINUS_CONSOLE_PORT to a free port.",
            file=sys.stderr,
        )
        return 1
    (engine.data_dir() / "static").mkdir(parents=True, exist_ok=True)  # WhiteNoise looks there, too
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(host, port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
