"""One poll per feed in this process, however many people look. Snapshot, then deltas with sequence numbers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from channels.db import database_sync_to_async
from django.db import DatabaseError

from console.live import Data, Feed
from inference.errors import SerinusError

POLL_S = 1.0
# Late samples may still change the newest bins, so these are sent again.
LATE_BINS = 4
log = logging.getLogger(__name__)
Listener = Callable[[Data], None]


def delta(old: Data, new: Data) -> Data:
    """What changed at the top level; of `points`, those that are new or differ."""
    changed = {key: value for key, value in new.items() if key != "points" and old.get(key) != value}
    if "points" in new:
        held = {point["at"]: point for point in old.get("points", [])}
        fresh = [point for point in new["points"] if held.get(point["at"]) != point]
        if fresh:
            changed["points"] = fresh
    return changed


class Poll:
    """Reads one feed once a second while somebody listens."""

    def __init__(self, feed: Feed, ended: Callable[[Poll], None]) -> None:
        self.feed, self.ended = feed, ended
        self.listeners: set[Listener] = set()
        self.sequence = 0
        self.data: Data | None = None
        self.task = asyncio.create_task(self._run())

    def join(self, listener: Listener) -> None:
        self.listeners.add(listener)
        if self.data is not None:
            listener(self._snapshot())

    def leave(self, listener: Listener) -> None:
        self.listeners.discard(listener)
        if not self.listeners:
            self.stop()

    def stop(self) -> None:
        self.task.cancel()
        self.ended(self)

    async def _run(self) -> None:
        read: Any = database_sync_to_async(self.feed.read, thread_sensitive=False)
        while True:
            try:
                self._take(await read())
            except SerinusError as error:
                self._tell({"type": "error", "code": error.code, "message": error.message})
                self.ended(self)
                return
            except DatabaseError:
                log.warning("the database does not answer: live updates of %s wait", self.feed.key)
            except Exception:  # whatever it is, the next second may be better
                log.exception("live updates of %s failed, the next try is in a second", self.feed.key)
            await asyncio.sleep(POLL_S)

    def _take(self, data: Data) -> None:
        if self.data is None:
            self.data, self.sequence = data, 1
            self._tell(self._snapshot())
            return
        changed = delta(self.data, data)
        self.data = data
        if changed:
            self.sequence += 1
            self._tell({"type": "delta", "seq": self.sequence, "data": changed})

    def _snapshot(self) -> Data:
        return {"type": "snapshot", "seq": self.sequence, "data": self.data}

    def _tell(self, message: Data) -> None:
        for listener in tuple(self.listeners):
            listener(message)


class Hub:
    """The polls of one event loop, by the feed's key."""

    def __init__(self) -> None:
        self.polls: dict[str, Poll] = {}

    def join(self, feed: Feed, listener: Listener) -> Callable[[], None]:
        """Listens from now on, a snapshot first; returns the call that ends it."""
        poll = self.polls.get(feed.key)
        if poll is None:
            poll = self.polls[feed.key] = Poll(feed, self._forget)
        poll.join(listener)
        joined = poll
        return lambda: joined.leave(listener)

    def _forget(self, poll: Poll) -> None:
        # A poll that ended long ago may be left late; another may stand under its key by then.
        if self.polls.get(poll.feed.key) is poll:
            del self.polls[poll.feed.key]


_hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, Hub] = WeakKeyDictionary()


def hub() -> Hub:
    """The running loop's hub."""
    return _hubs.setdefault(asyncio.get_running_loop(), Hub())
