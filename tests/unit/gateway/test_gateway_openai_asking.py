"""Several requests read as one stream: order, failures, and a reader that leaves."""

import asyncio
import contextlib

import pytest

from inference.errors import Overloaded
from inference.gateway.openai.asking import ABREAST, merged, together
from inference.protocol.generation import Event, Piece


class Asking:
    """Gives `count` events, then fails if it shall."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.count = count
        self.error = error
        self.is_closed = False

    async def events(self):
        try:
            for number in range(self.count):
                yield Event([Piece(number)])
                await asyncio.sleep(0)
            if self.error is not None:
                raise self.error
        finally:
            self.is_closed = True


async def test_every_requests_events_come_in_its_own_order():
    askings = [Asking(3) for _ in range(2 * ABREAST + 1)]
    found: dict[int, list[int]] = {}
    async for number, event in merged(askings):
        found.setdefault(number, []).append(event.pieces[0].index)
    assert found == {number: [0, 1, 2] for number in range(len(askings))}


async def test_the_first_failure_is_raised_and_ends_the_others():
    others = Asking(10_000)
    with pytest.raises(Overloaded):
        async for _ in merged([others, Asking(2, Overloaded())]):
            pass
    assert others.is_closed


async def test_a_reader_that_leaves_while_much_waits_ends_them_all():
    askings = [Asking(10_000) for _ in range(4)]
    async with asyncio.timeout(5):
        async with contextlib.aclosing(merged(askings)) as events:
            await anext(events)
            await asyncio.sleep(0.05)  # as much as may lies ready
    assert all(asking.is_closed for asking in askings)


async def test_together_keeps_the_order_and_stops_at_the_first_failure():
    ended = []

    async def work(number: int) -> int:
        await asyncio.sleep(0.001 * (5 - number % 5))
        ended.append(number)
        return number

    async def fail() -> int:
        raise Overloaded

    numbers = list(range(3 * ABREAST))
    assert await together([lambda n=n: work(n) for n in numbers]) == numbers
    ended.clear()
    with pytest.raises(Overloaded):
        await together([fail, *(lambda n=n: work(n) for n in numbers)])
    await asyncio.sleep(0.02)
    assert not ended
