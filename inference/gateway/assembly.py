"""The parts of a gateway's process and how they hang together: made once, at its start. What they do, they do elsewhere."""

from __future__ import annotations

import socket
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inference.config import BadSetting, GatewayConfig
from inference.gateway import doors
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
from inference.gateway.heads import Heads
from inference.gateway.http import Connection
from inference.gateway.listener import Listener
from inference.gateway.live_doors import LiveDoors
from inference.gateway.live_settings import LiveSettings
from inference.gateway.mirror import Mirror
from inference.gateway.openai.completions import Completions
from inference.gateway.openai.doors import OpenAI
from inference.gateway.openai.embeddings import Embeddings
from inference.gateway.openai.files import Files
from inference.gateway.openai.kept import KeptResponses
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


@dataclass(frozen=True, slots=True)
class Core:
    """What every door stands on."""

    config: GatewayConfig
    plane: DataPlane
    triton: TritonMetrics
    settings: LiveSettings
    spans: Spans | None
    diffs: Diffs
    recorder: Recorder


@dataclass(frozen=True, slots=True)
class Gateway:
    """A process's parts. files, repository: hold connections to the console, to be closed at the end."""

    core: Core
    streams: Streams
    listener: Listener[Connection]
    repository: Repository
    files: Files
    regions: Regions | None

    def runs(self) -> list[Coroutine[Any, Any, None]]:
        """What goes on for as long as the process lives."""
        core, url = self.core, self.core.config.redis_url
        plane, samples = core.plane, tables.connect(url)
        return [
            plane.pool.run(), plane.table.run(tables.connect(url)), plane.telemetry.run(samples), self.streams.run(),
            self.listener.run(), core.triton.run(), core.triton.gpus.run(), core.diffs.run(samples), core.recorder.run(samples),
        ]  # fmt: skip

    def grpc_door(self) -> Door | None:
        """The gRPC door, not yet listening; None where the setting says so."""
        config = self.core.config
        if not config.grpc_port:
            return None
        return Door(
            self.core.plane,
            Behind(self.repository, self.core.settings, self.regions),
            max_message_bytes=config.max_grpc_message_bytes,
            server_name=config.server_name,
            extensions=_extensions(config),
        )


def assembled(config: GatewayConfig, sock: socket.socket, *, max_connections: int) -> Gateway:
    """1. What every door stands on, 2. the doors, 3. who listens for them. Raises BadSetting."""
    core = _core(config)
    plane = core.plane
    regions = Regions(config.max_body_bytes) if config.allow_client_shm else None
    rest = Rest(
        plane,
        server_name=config.server_name,
        max_body_bytes=config.max_body_bytes,
        streams=lambda: len(streams),
        triton=core.triton.render,
        extensions=_extensions(config),
    )
    repository, files = Repository(rest, config.console_url), Files(rest, config.console_url)
    kept = KeptResponses(tables.connect(config.redis_url, retries=1), most_bytes=config.shared_responses_bytes)
    rooms = Rooms(
        rest,
        Generate(plane),
        LiveDoors(plane, rest, core.settings),
        repository,
        SharedDoors(plane, rest, regions),
        Feedback(plane, tables.connect(config.redis_url)),
        OpenAI(Completions(plane), Embeddings(plane), Models(plane, rest), files, Responses(plane, rest, kept)),
    )
    plane.table.load()
    addresses = doors.open_all(rooms)
    bodies = Bodies(config.max_body_bytes)
    streams = Streams(plane, addresses, bodies)
    predict = Predict(plane, limit_bytes=config.max_body_bytes, regions=regions, forward=config.header_forward_pattern)
    app = App(plane, rest, predict, streams, addresses)
    heads = Heads()
    server: Listener[Connection] = Listener(
        lambda connections: Connection(app, heads, bodies, connections),
        sock,
        max_connections=max_connections,
        others=lambda: len(streams),
    )
    return Gateway(core, streams, server, repository, files, regions)


def _core(config: GatewayConfig) -> Core:
    pool, telemetry = Pool(), Telemetry()
    table = Table(pool, config.data_dir / "gateway" / "routes.json", telemetry.used_keys)
    plane, settings = DataPlane(table, pool, telemetry, insecure=config.insecure), LiveSettings()
    plane.counting.tracer = spans = _spans(config, settings)
    diffs, recorder = Diffs(telemetry.source), Recorder(telemetry.source)
    triton = TritonMetrics(plane, config.data_dir / "gateway" / f"sums-{config.port}.msgpack")
    plane.watchers = (Mirror(plane, diffs).watch, recorder.watch)
    return Core(config, plane, triton, settings, spans, diffs, recorder)


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
