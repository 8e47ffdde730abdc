"""Entries for one bounded Valkey stream, sent off the request's path. While Valkey is away they wait, bounded in number
and bytes, and the oldest are dropped.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import Any

import redis.asyncio as redis
from redis.exceptions import RedisError

SEND_AT_ONCE = 100
PAUSE_S = (1.0, 10.0)
_log = logging.getLogger(__name__)


class Outbox:
    """field: the entries' one field; maxlen: of the stream."""

    def __init__(self, stream: str, field: bytes, *, maxlen: int, most: int, most_bytes: int) -> None:
        self._stream = stream
        self._field = field
        self._maxlen = maxlen
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._waiting: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, entry: bytes) -> None:
        self._waiting.append(entry)
        self._bytes += len(entry)
        while len(self._waiting) > self._most or self._bytes > self._most_bytes:
            self._bytes -= len(self._waiting.popleft())

    async def run(self, client: redis.Redis | None) -> None:
        """Sends what waits once a second, for ever."""
        pause_s, retry_at = PAUSE_S[0], 0.0
        while True:
            await asyncio.sleep(PAUSE_S[0])
            if client is None or not self._waiting or time.monotonic() < retry_at:
                continue
            try:
                await self._send(client)
                pause_s = PAUSE_S[0]
            except (TimeoutError, RedisError, OSError) as error:
                _log.debug("entries of %s wait: %s", self._stream, error)
                pause_s = min(pause_s * 2, PAUSE_S[1])
                retry_at = time.monotonic() + pause_s

    async def _send(self, client: Any) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(SEND_AT_ONCE, len(self._waiting)))]
            self._bytes -= sum(map(len, batch))
            try:
                async with client.pipeline(transaction=False) as pipe:
                    for entry in batch:
                        pipe.xadd(self._stream, {self._field: entry}, maxlen=self._maxlen, approximate=True)
                    await pipe.execute()
            except BaseException:
                self._waiting.extendleft(reversed(batch))
                self._bytes += sum(map(len, batch))
                raise
