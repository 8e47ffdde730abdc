"""The gateway's table of addresses without a gateway: for tests that walk it."""

from __future__ import annotations

from pathlib import Path

from inference.gateway.app import Doors
from inference.gateway.connections import Pool
from inference.gateway.dataplane import DataPlane
from inference.gateway.doors import Rooms, open_all
from inference.gateway.feedback import Feedback
from inference.gateway.generate import Generate
from inference.gateway.live_doors import LiveDoors
from inference.gateway.live_settings import LiveSettings
from inference.gateway.repository import Repository
from inference.gateway.rest import Rest
from inference.gateway.shared_doors import SharedDoors
from inference.gateway.table import Table
from inference.gateway.telemetry import Telemetry


def doors_of_the_gateway() -> Doors:
    pool = Pool()
    plane = DataPlane(Table(pool, Path("unused")), pool, Telemetry())
    rest = Rest(plane, server_name="s", max_body_bytes=1024)
    live, repository = LiveDoors(plane, rest, LiveSettings()), Repository(rest, "")
    return open_all(Rooms(rest, Generate(plane), live, repository, SharedDoors(plane, rest, None), Feedback(plane)))
