"""How requests are run: each side of a coin that must not show in the tokens, and engines that run them so."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.errors import SerinusError
from inference.generation.engine import Engine
from inference.protocol import generation
from inference.protocol.generation import Generate, Sampling
from inference.protocol.settings import GenerationSettings, Speculation
from inference.replica.language import LanguageBounds, LanguageExecutor
from inference.replica.language_text import LanguageText
from inference.runtime.work import Outcome, Ticket

BLOCK = 16
EOS = 2


@dataclass(frozen=True)
class Manner:
    """How requests are run. Each is one side of a coin that must not show in the tokens."""

    together: bool
    chunked: bool
    prefix_hit: bool
    preempted: bool
    speculative: bool
    streamed: bool


EVERY = [Manner(*row) for row in itertools.product((False, True), repeat=6)]
# A covering array of strength two (Katona; Kleitman and Spencer): six rows hold all four values of every pair.
ARRAY = [Manner(*map(bool, row)) for row in (
    (1, 1, 1, 1, 1, 1),
    (1, 1, 0, 0, 0, 0),
    (1, 0, 1, 1, 0, 0),
    (0, 1, 1, 0, 1, 0),
    (0, 0, 0, 1, 0, 1),
    (0, 0, 0, 0, 1, 1),
)]  # fmt: skip


def blocks_of(tokens: int) -> int:
    return -(-tokens // BLOCK)


def engine(model: Any, manner: Manner, asked: list[list[int]], limit: int) -> Engine:
    """An engine that has to run `asked` in this manner: where they are preempted together, a few of them fit in."""
    from inference.replica.language_start import engine_of

    settings = GenerationSettings(
        block_size=BLOCK,
        max_num_seqs=len(asked) if manner.together else 1,
        max_num_batched_tokens=16 if manner.chunked else 1024,
        enable_prefix_caching=manner.prefix_hit,
        speculation=Speculation(tokens=4, shortest_match=1) if manner.speculative else None,
    )
    blocks = sum(blocks_of(len(prompt) + limit) for prompt in asked) + 1
    if manner.preempted and manner.together:
        blocks = 2 * max(blocks_of(len(prompt) + limit) for prompt in asked)
    model.allocate(blocks, BLOCK)
    return engine_of(model, settings, blocks)


def common(asked: list[list[int]]) -> int:
    """How many tokens all of them begin with."""
    columns = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*asked, strict=False))
    return len(list(columns))


class Asked:
    """One request at an executor, and the tokens that its events brought."""

    def __init__(
        self, executor: LanguageExecutor, prompt: list[int], limit: int, *, streamed: bool = False, priority: int = 1
    ) -> None:
        sampling = Sampling(max_tokens=limit, temperature=0.0)
        message = Generate(prompt, sampling, stream=streamed, priority=priority, return_token_ids=True)
        packed = np.empty(1, dtype=object)
        packed[0] = generation.encode_asked(message)
        self.tokens: list[int] = []
        self.events = 0
        self.cached = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        now = time.monotonic()
        executor.submit(Ticket({generation.REQUEST: packed}, 1, now + 120, now, self._reply))

    def _reply(self, _ticket: Ticket, result: Outcome | SerinusError, final: bool) -> None:
        if isinstance(result, SerinusError):
            self.ended.set_exception(result)
            return
        event = generation.decode_event(result.outputs[generation.EVENT][0])
        self.events += 1
        self.tokens += [token for piece in event.pieces for token in piece.tokens]
        self.cached = event.usage.cached_tokens if event.usage else 0
        if final:
            self.ended.set_result(None)


@contextmanager
def running(engine: Engine, text: LanguageText) -> Iterator[LanguageExecutor]:
    def hung() -> None:
        raise AssertionError("an iteration hung")

    executor = LanguageExecutor(engine, text, LanguageBounds(256, 0, 60.0), on_hang=hung)
    try:
        yield executor
    finally:
        executor.stop()
        assert executor._thread.join(10.0), "the engine's thread goes on"


async def said(manner: Manner, engine: Engine, text: LanguageText, asked: list[list[int]], limit: int) -> list[Asked]:
    """All of them through the executor, in this manner."""
    with running(engine, text) as executor:
        if manner.prefix_hit:
            await Asked(executor, [*asked[0][: common(asked)], EOS], 1).ended
        if manner.together:
            found = [Asked(executor, prompt, limit, streamed=manner.streamed) for prompt in asked]
            await asyncio.gather(*(one.ended for one in found))
            return found
        found = []
        for prompt in asked:
            found.append(Asked(executor, prompt, limit, streamed=manner.streamed))
            if manner.preempted:
                await _disturb(engine, executor, found[-1])
            await found[-1].ended
        return found


async def _disturb(engine: Engine, executor: LanguageExecutor, one: Asked) -> None:
    """Somebody more important takes the only seat, once the answer has begun."""
    begun = engine.spent.iterations + 3
    await _until(lambda: engine.spent.iterations >= begun or one.ended.done())
    await Asked(executor, [EOS], 1, priority=0).ended


async def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        await asyncio.sleep(0.002)
