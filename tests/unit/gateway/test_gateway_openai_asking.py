"""Several requests read as one stream: order, failures, and a reader that leaves."""

import asyncio
import contextlib

import pytest

from inference.errors import Overloaded
from inference.gateway.admission import Queue
from inference.gateway.openai.asking import ABREAST, holder, merged, together
from inference.gateway.openai.problems import NoSuchModel
from inference.gateway.table import Endpoint, Variant
from inference.protocol.generation import Event, Piece, language_signature
from inference.protocol.routes import EndpointRoute, VariantRoute


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


def endpoint(*versions: tuple[int, int, list[str]]) -> Endpoint:
    """versions: (number, basis points, adapters)."""
    routes = [VariantRoute(n, "primary", bp, language_signature(), adapters=names) for n, bp, names in versions]
    variants = {
        one.version: Variant(one, [], str(one.version), ("lm", one.version, ""), [], b"", None) for one in routes
    }
    return Endpoint(EndpointRoute("lm", "lm", "salt", False, 600, 64, routes), variants, Queue(), None)


@pytest.mark.parametrize(
    ("versions", "asked", "goes_to"),
    [
        ([(1, 10_000, ["fr"])], None, None),  # the split decides, as for the base
        ([(1, 5000, ["fr"]), (2, 5000, ["fr"])], None, None),
        ([(1, 9000, []), (2, 1000, ["fr"])], None, 2),
        ([(1, 9000, []), (2, 400, ["fr"]), (3, 600, ["fr"])], None, 3),
        ([(1, 10_000, ["fr"]), (2, 0, [])], None, None),
        ([(1, 10_000, []), (2, 0, ["fr"])], None, 2),
        ([(1, 5000, ["fr"]), (2, 5000, ["fr"])], 2, 2),
    ],
    ids=["one", "both", "one-of-two", "most-traffic", "resting", "only-resting", "pinned"],
)
def test_an_adapters_request_goes_where_it_is(versions, asked, goes_to):
    assert holder(endpoint(*versions), asked, "fr") == goes_to


@pytest.mark.parametrize(("asked", "adapter"), [(None, "de"), (2, "fr"), (3, "fr")])
def test_an_adapter_that_is_not_there_is_no_model(asked, adapter):
    with pytest.raises(NoSuchModel, match=f"The model 'lm:{adapter}' does not exist"):
        holder(endpoint((1, 10_000, ["fr"]), (2, 0, [])), asked, adapter)
