import asyncio

import pytest

from inference.errors import Malformed, Overloaded, TooLarge
from inference.gateway.bodies import HELD_BODIES, MAX_CHUNKS, SMALL_BYTES, Bodies, Body

LIMIT = 1 << 20


def receiver(*parts):
    """An ASGI receive that gives these pieces; None is a client who left."""
    left = [
        {"type": "http.disconnect"} if part is None else {"type": "http.request", "body": part, "more_body": True}
        for part in parts
    ]
    if left and left[-1]["type"] == "http.request":
        left[-1]["more_body"] = False
    queue = iter(left)

    async def receive():
        return next(queue)

    return receive


async def read(bodies, *parts, announced=-1):
    body = Body(bodies)
    return body, await body.read(announced, receiver(*parts))


async def test_pieces_become_one_body_and_small_ones_do_not_count():
    bodies = Bodies(LIMIT)
    _, found = await read(bodies, b"ab", b"", b"c")
    assert (found, bodies.held_bytes) == (b"abc", 0)


async def test_what_a_large_body_holds_is_given_back():
    bodies = Bodies(LIMIT)
    body, found = await read(bodies, bytes(SMALL_BYTES), bytes(10))
    assert (len(found), bodies.held_bytes) == (SMALL_BYTES + 10, SMALL_BYTES + 10)
    body.release()
    body.release()
    assert bodies.held_bytes == 0


@pytest.mark.parametrize("parts", [[bytes(LIMIT + 1)], [bytes(LIMIT), b"x"], [b"x"] * (LIMIT // 4) + [bytes(LIMIT)]])
async def test_a_body_beyond_the_limit_is_refused_and_holds_no_more_than_it(parts):
    bodies = Bodies(LIMIT)
    with pytest.raises(TooLarge):
        await read(bodies, *parts)
    assert bodies.held_bytes <= LIMIT


async def test_the_limit_itself_is_fine():
    assert len((await read(Bodies(LIMIT), bytes(LIMIT)))[1]) == LIMIT


async def test_what_says_it_is_too_large_is_not_read():
    async def receive():
        raise AssertionError("it was read")

    with pytest.raises(TooLarge):
        await Body(Bodies(LIMIT)).read(LIMIT + 1, receive)


async def test_too_many_pieces_and_an_early_end():
    with pytest.raises(TooLarge):
        await read(Bodies(LIMIT), *[b""] * (MAX_CHUNKS + 2))
    with pytest.raises(Malformed):
        await read(Bodies(LIMIT), b"a", None)


async def test_all_bodies_together_are_bounded_while_they_come():
    """Nobody has finished yet; a small body passes still."""
    bodies = Bodies(LIMIT)
    stuck = asyncio.Event()
    refused = 0

    async def slow():
        sent = iter([bytes(LIMIT - 1)])

        async def receive():
            for part in sent:
                return {"type": "http.request", "body": part, "more_body": True}
            await stuck.wait()
            raise AssertionError

        await Body(bodies).read(LIMIT, receive)

    tasks = [asyncio.ensure_future(slow()) for _ in range(HELD_BODIES + 4)]
    await asyncio.sleep(0)
    for task in tasks:
        if task.done():
            assert isinstance(task.exception(), Overloaded)
            refused += 1
        else:
            task.cancel()
    assert refused == 4
    assert bodies.held_bytes <= LIMIT * HELD_BODIES
    assert (await read(bodies, b"small"))[1] == b"small"
