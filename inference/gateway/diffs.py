"""Which of the copies that came out otherwise are shown: of every endpoint the worst of each second."""

from __future__ import annotations

import asyncio

import msgspec
import redis.asyncio as redis

from inference.gateway.outbox import Outbox
from inference.protocol import shadows
from inference.protocol.routes import DIFFS_STREAM
from inference.protocol.shadows import Diff

WAITING = 200
WAITING_BYTES = 1 << 20


class Diffs:
    """source: names this process, as in its samples."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._sequence = 0
        self._worst: dict[str, Diff] = {}
        self.outbox = Outbox(
            DIFFS_STREAM, shadows.FIELD, maxlen=shadows.STREAM_MAXLEN, most=WAITING, most_bytes=WAITING_BYTES
        )

    def is_worst(self, endpoint: str, distance: float) -> bool:
        """Whether this second has not seen one as far apart yet, so that it is worth writing down."""
        known = self._worst.get(endpoint)
        return known is None or known.distance < distance

    def put(self, diff: Diff) -> None:
        """One that `is_worst`. Its source and number are given here."""
        self._worst[diff.endpoint] = diff

    def flush(self) -> None:
        """The second has ended."""
        worst, self._worst = self._worst, {}
        for diff in worst.values():
            self._sequence += 1
            numbered = msgspec.structs.replace(diff, source=self.source, sequence=self._sequence)
            self.outbox.put(shadows.encode(numbered))

    async def run(self, client: redis.Redis | None) -> None:
        """Sends what is worth showing, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.outbox.run(client))
            group.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.flush()
