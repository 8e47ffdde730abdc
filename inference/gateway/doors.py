"""The table of addresses of the REST door: one place that says what there is."""

from __future__ import annotations

from dataclasses import dataclass

from inference.gateway.app import GET, NAME, POST, Doors
from inference.gateway.feedback import Feedback
from inference.gateway.feedback_ids import FORM
from inference.gateway.generate import Generate
from inference.gateway.live_doors import LiveDoors
from inference.gateway.openai import doors as openai_doors
from inference.gateway.openai.doors import OpenAI
from inference.gateway.repository import Repository
from inference.gateway.rest import Rest
from inference.gateway.shared_doors import SharedDoors

_REPOSITORY = rf"/v2/repository(?:/(?!models/)({NAME}))?"
_REGION = rf"sharedmemory(?:/region/({NAME}))?"


@dataclass(frozen=True, slots=True)
class Rooms:
    """Those who answer. openai: None for a gateway without that API (tests of the other doors)."""

    rest: Rest
    generate: Generate
    live: LiveDoors
    repository: Repository
    shared: SharedDoors
    feedback: Feedback
    openai: OpenAI | None = None


def open_all(rooms: Rooms) -> Doors:
    """Every address of this gateway."""
    doors = Doors()
    _open_server(doors, rooms)
    _open_models(doors, rooms)
    repository, shared = rooms.repository, rooms.shared
    doors.pattern("repository index", f"{_REPOSITORY}/index", POST, repository.index)
    doors.pattern("repository change", f"{_REPOSITORY}/models/({NAME})/(load|unload)", POST, repository.change)
    doors.pattern("shared status", f"/v2/system{_REGION}/status", GET, shared.status)
    doors.pattern("shared register", f"/v2/system{_REGION}/register", POST, shared.register)
    doors.pattern("shared unregister", f"/v2/system{_REGION}/unregister", POST, shared.unregister)
    doors.pattern("cuda status", f"/v2/cuda{_REGION}/status", GET, shared.cuda_status)
    doors.pattern("cuda register", f"/v2/cuda{_REGION}/register", POST, shared.cuda_register)
    doors.pattern("cuda unregister", f"/v2/cuda{_REGION}/unregister", POST, shared.cuda_unregister)
    doors.pattern("feedback", rf"/v2/feedback/(({NAME}){FORM})", POST, rooms.feedback.take)
    if rooms.openai is not None:
        openai_doors.open_all(doors, rooms.openai)
    return doors


def _open_server(doors: Doors, rooms: Rooms) -> None:
    rest, live = rooms.rest, rooms.live
    doors.path("/v2", GET, rest.server)
    doors.path("/v2/health/live", GET, rest.live)
    doors.path("/v2/health/ready", GET, rest.ready)
    doors.path("/v2/models/stats", GET, rest.all_stats)
    doors.path("/v2/logging", GET | POST, live.logging)
    doors.path("/v2/trace/setting", GET | POST, live.tracing)
    doors.path("/metrics", GET, rest.metrics)


def _open_models(doors: Doors, rooms: Rooms) -> None:
    rest = rooms.rest
    doors.verb(None, GET, rest.model)
    doors.verb("ready", GET, rest.model_ready)
    doors.verb("config", GET, rest.config)
    doors.verb("stats", GET, rest.stats)
    doors.verb("trace/setting", GET | POST, rooms.live.tracing_of_model)
    doors.verb("generate", POST, rooms.generate.once)
    doors.verb("generate_stream", POST, rooms.generate.stream)
    doors.verb("infer", POST, None, speaks="infer")
    doors.path("/v2/stream", GET, None, speaks="websocket")
    doors.verb("stream", GET, None, speaks="websocket")
