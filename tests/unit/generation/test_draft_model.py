"""A draft model changes how many tokens an iteration gives, and nothing about them: greedy, seeded, with a grammar."""

import random

import pytest

from inference.protocol.settings import Speculation
from tests.support import engines

LIMIT = 14
MIND = random.Random(4)
PROMPTS = [[MIND.randrange(3, 300) for _ in range(size)] for size in (1, 3, 8, 9, 23, 40, 64, 90)]
SEEDS = {"same": engines.SAME, "other": engines.OTHER}


@pytest.fixture(scope="module")
def wanted():
    return [engines.greedy(prompt, LIMIT) for prompt in PROMPTS]


@pytest.fixture(params=SEEDS, scope="module")
def draft(request):
    """A draft model that guesses everything, and one that guesses nothing."""
    return engines.tiny(SEEDS[request.param])[0]


def said(engine, prompts=PROMPTS, during=None, **more):
    found = engines.run(engine, [engines.request(prompt, LIMIT, **more) for prompt in prompts], during=during)
    assert all(told.error is None for told in found.values())
    return [found[at, 0].tokens for at in range(len(prompts))]


@pytest.mark.parametrize("chunk", [16, 64, 512])
@pytest.mark.parametrize("seats", [1, 3, 64])
@pytest.mark.parametrize("caching", [False, True])
def test_alone_or_together_chunked_or_whole(wanted, draft, chunk, seats, caching):
    engine = engines.engine(
        draft=draft, max_num_batched_tokens=chunk, max_num_seqs=seats, enable_prefix_caching=caching
    )
    assert said(engine) == wanted
    assert said(engine) == wanted  # with caching, from the prefixes of the first time
    assert engine.spent.drafted > 0


@pytest.mark.parametrize("draft_blocks", [0, 9], ids=["enough", "few"])
def test_preempted_and_short_of_blocks(wanted, draft, draft_blocks):
    engine = engines.engine(
        blocks=18, draft=draft, draft_blocks=draft_blocks, max_num_batched_tokens=128, enable_prefix_caching=False
    )
    assert said(engine) == wanted
    assert engine.scheduler.preempted > 0
    assert engines.drafter(engine).pool.usage == 0
