"""The table of addresses of the REST door: one place that says what there is."""

from __future__ import annotations

from inference.gateway.app import GET, POST, Doors
from inference.gateway.rest import Rest


def open_all(rest: Rest) -> Doors:
    """Every address of this gateway."""
    doors = Doors()
    doors.path("/v2", GET, rest.server)
    doors.path("/v2/health/live", GET, rest.live)
    doors.path("/v2/health/ready", GET, rest.ready)
    doors.path("/metrics", GET, rest.metrics)
    doors.verb(None, GET, rest.model)
    doors.verb("ready", GET, rest.model_ready)
    doors.verb("infer", POST, None, speaks="infer")
    doors.path("/v2/stream", GET, None, speaks="websocket")
    doors.verb("stream", GET, None, speaks="websocket")
    return doors
