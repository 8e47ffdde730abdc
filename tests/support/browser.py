"""Chromium without a display, and the console under its real ASGI server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions", "--no-proxy-server",
]  # fmt: skip
START_S = 20.0


def executable() -> str | None:
    """The machine's Chromium, or None when there is none: the browser tests are then skipped."""
    wanted = os.environ.get("SERINUS_CHROMIUM", CHROMIUM)
    return wanted if Path(wanted).exists() else None


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def console_server() -> Iterator[str]:
    """The console as in production (granian, config.asgi) on a free port, in a thread: it shares the test's database.

    Uploads, pages and WebSockets are all there.
    """
    from granian.constants import Interfaces
    from granian.server.embed import Server

    from config.asgi import application

    port = free_port()
    server = Server(
        application, address="127.0.0.1", port=port, interface=Interfaces.ASGINL, log_access=False, websockets=True
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    try:
        _until_open(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()
        thread.join(10)


def _until_open(port: int) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"the console did not open port {port} within {START_S} s")
