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
from typing import TYPE_CHECKING

import uvloop

from inference.config import BadSetting, GatewayConfig, gateway_config
from inference.errors import Draining
from inference.gateway import doors, listener
from inference.gateway import rest as rests
from inference.gateway import table as tables
from inference.gateway.app import App
from inference.gateway.bodies import Bodies
from inference.gateway.connections import Pool
from inference.gateway.dataplane import DataPlane
from inference.gateway.diffs import Diffs
from inference.gateway.doors import Rooms
from inference.gateway.exposition_triton import TritonMetrics
from inference.gateway.feedback import Feedback
from inference.gateway.generate import Generate
from inference.gateway.grpc.control import Behind
from inference.gateway.grpc.door import Door
from inference.gateway.listener import Listener
from inference.gateway.live_doors import LiveDoors
from inference.gateway.live_settings import LINE, LiveSettings
from inference.gateway.mirror import Mirror
from inference.gateway.openai.completions import Completions
from inference.gateway.openai.doors import OpenAI
from inference.gateway.openai.embeddings import Embeddings
from inference.gateway.openai.files import Files
from inference.gateway.openai.models import Models
from inference.gateway.openai.responses import Responses
from inference.gateway.predict import Predict
from inference.gateway.recorder import Recorder
from inference.gateway.repository import Repository
from inference.gateway.rest import Rest
from inference.gateway.shared_doors import SharedDoors
from inference.gateway.shared_memory import Regions
from inference.gateway.table import Table
from inference.gateway.telemetry import Telemetry
from inference.gateway.websocket import Streams

if TYPE_CHECKING:
    from inference.gateway.spans import Spans

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
    pool, telemetry = Pool(), Telemetry()
    table = Table(pool, config.data_dir / "gateway" / "routes.json", telemetry.used_keys)
    plane = DataPlane(table, pool, telemetry, insecure=config.insecure)
    triton, settings = TritonMetrics(plane), LiveSettings()
    plane.tracer = spans = _spans(config, settings)
    diffs, recorder = Diffs(telemetry.source), Recorder(telemetry.source)
    plane.watchers = (Mirror(plane, diffs).watch, recorder.watch)
    regions = Regions(config.max_body_bytes) if config.allow_client_shm else None
    rest = Rest(
        plane,
        server_name=config.server_name,
        max_body_bytes=config.max_body_bytes,
        streams=lambda: len(streams),
        triton=triton.render,
        extensions=_extensions(config),
    )
    predict = Predict(plane, limit_bytes=config.max_body_bytes, regions=regions, forward=config.header_forward_pattern)
    repository, files = Repository(rest, config.console_url), Files(rest, config.console_url)
    rooms = Rooms(
        rest,
        Generate(plane),
        LiveDoors(plane, rest, settings),
        repository,
        SharedDoors(plane, rest, regions),
        Feedback(plane, tables.connect(config.redis_url)),
        OpenAI(Completions(plane), Embeddings(plane), Models(plane, rest), files, Responses(plane, rest)),
    )
    _filter_logs(settings)
    table.load()
    addresses = doors.open_all(rooms)
    streams = Streams(plane, addresses)
    app = App(plane, rest, predict, streams, addresses)
    limit = max(16, min(MAX_CONNECTIONS, _raise_file_limit() - SPARE_FILES))
    server = Listener(app, Bodies(config.max_body_bytes), sock, max_connections=limit, others=lambda: len(streams))
    grpc_door = await _grpc_door(config, plane, Behind(repository, settings, regions))
    client, samples = tables.connect(config.redis_url), tables.connect(config.redis_url)
    runs = (
        pool.run(), table.run(client), telemetry.run(samples), streams.run(), server.run(), triton.run(),
        diffs.run(samples), recorder.run(samples),
    )  # fmt: skip
    work = [asyncio.ensure_future(run) for run in runs]
    for task in work:
        task.add_done_callback(lambda done: _failed(done, stop))
    _freeze()
    server.start()
    _log.info("listening on http://%s:%s", config.host, config.port)
    await stop.wait()
    await _drain(plane, streams, server, grpc_door, config.drain_s)
    for task in work:
        task.cancel()
    await asyncio.gather(*work, repository.close(), files.close(), return_exceptions=True)
    if spans is not None:
        await asyncio.to_thread(spans.close)


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


def _spans(config: GatewayConfig, settings: LiveSettings) -> Spans | None:
    """Traces for the collector, where one is set. Raises BadSetting when their library is not installed."""
    if not config.otel_endpoint:
        return None
    try:
        from inference.gateway.spans import open_spans
    except ImportError as error:
        raise BadSetting(
            f"SERINUS_OTEL_ENDPOINT needs the extra otel: pip install 'serinus[otel]' ({error})"
        ) from error
    if config.trace_every:
        settings.set_traces({"trace_level": ["TIMESTAMPS"], "trace_rate": str(config.trace_every)})
    return open_spans(config.otel_endpoint, service=config.server_name, samples=settings.samples)


def _extensions(config: GatewayConfig) -> list[str]:
    more = [rests.REPOSITORY] if config.console_url else []
    return [*rests.EXTENSIONS, *more, *([rests.SHARED_MEMORY] if config.allow_client_shm else [])]


def _failed(task: asyncio.Future[None], stop: asyncio.Event) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.critical("a task of the gateway ended: it stops and is to be started anew", exc_info=task.exception())
        stop.set()


async def _grpc_door(config: GatewayConfig, plane: DataPlane, behind: Behind) -> Door | None:
    """The gRPC door, listening; None where the setting says so. Raises BadSetting."""
    if not config.grpc_port:
        return None
    door = Door(
        plane,
        behind,
        host=config.host,
        port=config.grpc_port,
        max_message_bytes=config.max_grpc_message_bytes,
        server_name=config.server_name,
        extensions=_extensions(config),
    )
    await door.start()
    return door


async def _drain(plane: DataPlane, streams: Streams, server: Listener, grpc_door: Door | None, drain_s: int) -> None:
    """Ends without breaking an answer.

    1. Readiness turns and every answer closes its connection, so that clients with kept connections leave politely;
    2. WebSockets and gRPC calls are told and finish; 3. the listeners close; 4. what is under way finishes, what does
    not is failed shortly before time is up.
    """
    end = time.monotonic() + max(drain_s - 1.0, 0.1)
    plane.draining = True
    _log.info("draining: %s requests under way, %s streams", len(plane.flights), len(streams))
    told = asyncio.gather(streams.drain(), _drain_grpc(grpc_door, drain_s))
    await asyncio.sleep(min(LINGER_S, drain_s / 4))
    server.close()
    while (len(plane.flights) or not told.done()) and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    plane.flights.fail_all(Draining())
    await asyncio.sleep(FLUSH_S)
    await server.finish()


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
