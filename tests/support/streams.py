"""What tests of the WebSocket share."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from tests.support.gateway_house import request

TRIPS = 20


async def unchanged_while_others_talk(count: Callable[[], int], quick: Any, within_s: float = 60.0) -> None:
    """Waits until `count` stays what it is while another connection has TRIPS answers, one after the other: so many times
    the gateway and its replica came round at least, and read nothing more. Fails after `within_s`.
    """
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        before = count()
        for number in range(TRIPS):
            await quick.send(json.dumps(request(identity=f"q{number}")))
            answer = json.loads(await asyncio.wait_for(quick.recv(), within_s))
            assert "outputs" in answer, answer
        if count() == before:
            return
    raise AssertionError("it never stood still")
