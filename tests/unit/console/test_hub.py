"""Snapshot, deltas, one poll for all who look."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console import hub as room
from console.hub import Hub, delta
from console.live import Feed
from inference.errors import NotFound


def applied(data: dict[str, Any], change: dict[str, Any], window: int = 1000) -> dict[str, Any]:
    """What the page makes of a delta (lib/socket.js does the same)."""
    points = {point["at"]: point for point in data.get("points", [])}
    points.update({point["at"]: point for point in change.get("points", [])})
    newest = max(points, default=0)
    kept = [points[at] for at in sorted(points) if at > newest - window]
    return {**data, **change, "points": kept}


def test_a_delta_holds_only_what_changed() -> None:
    old = {"rps": 1, "ready": 2, "points": [{"at": 1, "rows": []}, {"at": 2, "rows": [1]}]}
    new = {"rps": 3, "ready": 2, "points": [{"at": 2, "rows": [9]}, {"at": 3, "rows": []}]}
    assert delta(old, new) == {"rps": 3, "points": [{"at": 2, "rows": [9]}, {"at": 3, "rows": []}]}
    assert delta(new, new) == {}


points = st.dictionaries(st.integers(0, 30), st.integers(0, 3)).map(
    lambda held: [{"at": at, "rows": value} for at, value in sorted(held.items())]
)


@given(rps=st.integers(0, 3), more=st.integers(0, 3), old=points, new=points)
def test_a_snapshot_and_its_delta_make_the_next_snapshot(rps: int, more: int, old: Any, new: Any) -> None:
    before, after = {"rps": rps, "points": old}, {"rps": more, "points": new}
    made = applied(before, delta(before, after))
    assert made["rps"] == more
    there = {point["at"]: point for point in made["points"]}
    assert all(there[point["at"]] == point for point in new)


class Source:
    """A feed whose data the test sets."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {"n": 0}
        self.reads = 0
        self.gone = False

    def read(self) -> dict[str, Any]:
        self.reads += 1
        if self.gone:
            raise NotFound("gone")
        return dict(self.data)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "POLL_S", 0.02)
    # The reading thread is Django's business; here the poll itself is tested.
    monkeypatch.setattr(room, "database_sync_to_async", lambda read, **_: lambda: asyncio.to_thread(read))


async def until(check: Any) -> None:
    async with asyncio.timeout(5):
        while not check():  # noqa: ASYNC110 (a list that grows has no event)
            await asyncio.sleep(0.01)


async def test_two_listeners_share_one_poll_and_both_get_a_snapshot_first(quick: None) -> None:
    source, first, second, hub = Source(), [], [], Hub()
    leave_first = hub.join(Feed("k", source.read), first.append)
    await until(lambda: first)
    leave_second = hub.join(Feed("k", source.read), second.append)
    source.data = {"n": 1}
    await until(lambda: len(first) == 2 and len(second) == 2)
    assert first == [
        {"type": "snapshot", "seq": 1, "data": {"n": 0}},
        {"type": "delta", "seq": 2, "data": {"n": 1}},
    ]
    assert second == first
    assert len(hub.polls) == 1
    leave_first()
    assert len(hub.polls) == 1
    leave_second()
    assert hub.polls == {}
    await asyncio.sleep(0.05)
    reads = source.reads
    await asyncio.sleep(0.1)
    assert source.reads == reads


async def test_nothing_is_sent_while_nothing_changes(quick: None) -> None:
    source, seen, hub = Source(), [], Hub()
    leave = hub.join(Feed("k", source.read), seen.append)
    await until(lambda: source.reads > 4)
    leave()
    assert len(seen) == 1


async def test_a_thing_that_is_gone_ends_its_poll_with_an_error(quick: None) -> None:
    source, seen, hub = Source(), [], Hub()
    source.gone = True
    hub.join(Feed("k", source.read), seen.append)
    await until(lambda: seen)
    assert seen == [{"type": "error", "code": "not_found", "message": "gone"}]
    await until(lambda: not hub.polls)


async def test_a_late_leaver_does_not_end_the_poll_of_others(quick: None) -> None:
    """The first poll ended by an error; its listener leaves after a second poll of the same key began."""
    source, hub = Source(), Hub()
    source.gone = True
    first: list[Any] = []
    leave_first = hub.join(Feed("k", source.read), first.append)
    await until(lambda: first and not hub.polls)
    source.gone = False
    second: list[Any] = []
    leave_second = hub.join(Feed("k", source.read), second.append)
    await until(lambda: second)
    leave_first()
    assert "k" in hub.polls
    leave_second()
