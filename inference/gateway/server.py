"""The gateway's process: `python -m inference gateway`.

One process and one event loop: no master and worker of which one could outlive the other.
SIGTERM and SIGINT drain: readiness turns, answers close their connections, WebSockets are told, what is under way
finishes, and the process ends before `SERINUS_GATEWAY_DRAIN_S` is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Coroutine
from typing import Any

import uvloop

from inference.config import BadSetting, GatewayConfig, gateway_config
from inference.errors import Draining
from inference.gateway import listener
from inference.gateway.assembly import Gateway, assembled
from inference.gateway.grpc.door import Door
from inference.gateway.live_settings import LINE, LiveSettings

MAX_CONNECTIONS = 20_000
SPARE_FILES = 128
LINGER_S = 1.0
GC_THRESHOLDS = (20_000, 20, 50)
FLUSH_S = 0.1
_PR_SET_PDEATHSIG = 1
_log = logging.getLogger("inference.gateway")


def main(argv: list[str]) -> int:
    """Runs until SIGTERM or SIGINT. Exit status 2: a setting or the port is at fault, said on stderr."""
    if argv:
        sys.stderr.write("gateway: takes no arguments, its settings are SERINUS_* variables of the environment\n")
        return 2
    try:
        config = gateway_config()
        parent = os.getppid()
        if config.die_with_parent:
            _die_with_parent(parent)
        sock = _listen(config)
    except BadSetting as error:
        sys.stderr.write(f"gateway: {error}\n")
        return 2
    logging.basicConfig(level=logging.INFO, format=LINE)
    try:
        uvloop.run(serve(config, sock))
    except BadSetting as error:
        sys.stderr.write(f"gateway: {error}\n")
        return 2
    return 0


async def serve(config: GatewayConfig, sock: socket.socket) -> None:
    """Serves until a signal comes, then drains. Raises BadSetting when the gRPC port cannot be had."""
    stop = _until_signal()
    limit = max(16, min(MAX_CONNECTIONS, _raise_file_limit() - SPARE_FILES))
    gateway = assembled(config, sock, max_connections=limit)
    _filter_logs(gateway.core.settings)
    grpc_door = gateway.grpc_door()
    work = [asyncio.ensure_future(run) for run in _runs(gateway, grpc_door, limit)]
    for task in work:
        task.add_done_callback(lambda done: _failed(done, stop))
    _freeze()
    gateway.listener.start()
    _log.info("listening on http://%s:%s", config.host, config.port)
    await stop.wait()
    await _drain(gateway, grpc_door)
    for task in work:
        task.cancel()
    await asyncio.gather(*work, gateway.repository.close(), gateway.files.close(), return_exceptions=True)
    if gateway.core.spans is not None:
        await asyncio.to_thread(gateway.core.spans.close)


def _runs(gateway: Gateway, grpc_door: Door | None, limit: int) -> list[Coroutine[Any, Any, None]]:
    """What goes on for as long as the process lives; the gRPC door listens from here on."""
    if grpc_door is None:
        return gateway.runs()
    config = gateway.core.config
    accepting = grpc_door.start(
        config.host, config.grpc_port, max_connections=limit,
        others=lambda: len(gateway.listener.connections) + len(gateway.streams),
    )  # fmt: skip
    return [*gateway.runs(), accepting.run()]


def _filter_logs(settings: LiveSettings) -> None:
    for handler in logging.getLogger().handlers:
        handler.addFilter(settings.allows)


def _until_signal() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _freeze() -> None:
    """What stands now stands for good: the collector need not look at it again at every few hundred requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _failed(task: asyncio.Future[None], stop: asyncio.Event) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.critical("a task of the gateway ended: it stops and is to be started anew", exc_info=task.exception())
        stop.set()


async def _drain(gateway: Gateway, grpc_door: Door | None) -> None:
    """Ends without breaking an answer.

    1. Readiness turns and every answer closes its connection, so that clients with kept connections leave politely;
    2. WebSockets and gRPC calls are told and finish; 3. the listeners close; 4. what is under way finishes, what does
    not is failed shortly before time is up.
    """
    plane, streams, drain_s = gateway.core.plane, gateway.streams, gateway.core.config.drain_s
    end = time.monotonic() + max(drain_s - 1.0, 0.1)
    plane.draining = True
    _log.info("draining: %s requests under way, %s streams", len(plane.flights), len(streams))
    told = asyncio.gather(streams.drain(), _drain_grpc(grpc_door, drain_s))
    await asyncio.sleep(min(LINGER_S, drain_s / 4))
    gateway.listener.close()
    while (len(plane.flights) or not told.done()) and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    plane.flights.fail_all(Draining())
    await asyncio.sleep(FLUSH_S)
    await gateway.listener.finish()


async def _drain_grpc(grpc_door: Door | None, drain_s: int) -> None:
    """Its port closes with the listener's, so that health checks have seen that it drains."""
    if grpc_door is not None:
        linger_s = min(LINGER_S, drain_s / 4)
        await asyncio.sleep(linger_s)
        await grpc_door.drain(max(drain_s - linger_s - 0.5, 0.1))


def _listen(config: GatewayConfig) -> socket.socket:
    try:
        return listener.listen(config.host, config.port)
    except OSError as error:
        raise BadSetting(
            f"port {config.port} on {config.host} cannot be used ({os.strerror(error.errno or 0)}): "
            f"stop what listens there or set SERINUS_HTTP_PORT to another port"
        ) from error


def _raise_file_limit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft if soft > 0 else MAX_CONNECTIONS


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
