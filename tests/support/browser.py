"""Chromium without a display, and the console under its real ASGI server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

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
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve()), daemon=True)
    thread.start()
    try:
        _until_open(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(server.stop)  # from this thread alone it would not wake the loop
        thread.join(10)
        if not thread.is_alive():
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()


def _until_open(port: int) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"the console did not open port {port} within {START_S} s")


class Visitor:
    """A page that remembers what went wrong on it: console errors and warnings, exceptions of scripts."""

    def __init__(self, browser: Any, url: str, *, excused: str = r"status of 404", **context: Any) -> None:
        self.context = browser.new_context(base_url=url, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.excused = re.compile(excused)
        self.troubles: list[str] = []
        self.page.on("console", lambda said: said.type in {"error", "warning"} and self.note(said.text))
        self.page.on("pageerror", lambda error: self.note(str(error)))

    def note(self, text: str) -> None:
        if not self.excused.search(text):
            self.troubles.append(f"{self.page.url}: {text}")

    def log_in(self, name: str, password: str) -> Self:
        self.page.goto("/login/")
        self.page.fill("#id_username", name)
        self.page.fill("#id_password", password)
        self.page.click("button[type=submit]")
        self.page.wait_for_selector("h1:has-text('Overview')")
        return self

    @property
    def too_wide_px(self) -> int:
        """By how much the page is wider than its window: it would scroll sideways."""
        return int(self.page.locator("html").evaluate("(e) => e.scrollWidth - e.clientWidth"))


def drop(page: Any, onto: str, *paths: Path) -> None:
    """Drags real files or folders from the desktop onto an element."""
    box = page.locator(onto).bounding_box()
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    devtools = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "data": data, **at})
    devtools.detach()


def upload_speed(page: Any, bytes_per_s: int) -> None:
    """Slows uploads of the page down; -1 ends that."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("Network.enable")
    given = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": bytes_per_s}
    devtools.send("Network.emulateNetworkConditions", given)


def screenshots(fallback: Path) -> Path:
    """The folder for pictures: SERINUS_SCREENSHOTS, else one below `fallback`."""
    found = Path(os.environ.get("SERINUS_SCREENSHOTS", fallback / "screenshots"))
    found.mkdir(parents=True, exist_ok=True)
    return found
