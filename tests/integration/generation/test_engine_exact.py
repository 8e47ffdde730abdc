"""Greedy answers are transformers', token for token, whatever else holds."""

import random

import pytest

from inference.protocol.settings import Speculation
from tests.support import engines

LIMIT = 14
MIND = random.Random(4)
PROMPTS = [[MIND.randrange(3, 300) for _ in range(size)] for size in (1, 3, 8, 9, 23, 40, 64, 90)]


@pytest.fixture(scope="module")
def wanted():
    return [engines.greedy(prompt, LIMIT) for prompt in PROMPTS]


def said(engine, prompts=PROMPTS, during=None, **more):
    found = engines.run(engine, [engines.request(prompt, LIMIT, **more) for prompt in prompts], during=during)
    assert all(told.error is None for told in found.values())
    return [found[at, 0].tokens for at in range(len(prompts))]


@pytest.mark.parametrize("chunk", [16, 64, 512])
@pytest.mark.parametrize("seats", [1, 3, 64])
@pytest.mark.parametrize("caching", [False, True])
@pytest.mark.parametrize("speculation", [None, Speculation(tokens=3, shortest_match=1)], ids=["plain", "ngram"])
def test_alone_or_together_chunked_or_whole(wanted, chunk, seats, caching, speculation):
    engine = engines.engine(
        max_num_batched_tokens=chunk, max_num_seqs=seats, enable_prefix_caching=caching, speculation=speculation
    )
    assert said(engine) == wanted
    again = said(engine)  # with caching, from the prefixes of the first time
    assert again == wanted
    hits = engine.scheduler.prefix_hits
    assert (hits > 0) == caching


@pytest.mark.parametrize("speculation", [None, Speculation(tokens=4, shortest_match=1)], ids=["plain", "ngram"])
def test_preempted(wanted, speculation):
    """Memory for two of them at a time, though all may run."""
    engine = engines.engine(blocks=18, max_num_batched_tokens=128, speculation=speculation, enable_prefix_caching=False)
    assert said(engine) == wanted
    assert engine.scheduler.preempted > 0


def test_offloaded_prefixes_come_back(wanted):
    engine = engines.engine(blocks=24)
    engine.scheduler.pool.__init__(24, 8, offload=200)
    assert said(engine) == wanted
    loads = []
    load = engine.model.load_blocks
    engine.model.load_blocks = lambda blocks, saved: (loads.append(len(blocks)), load(blocks, saved))
    assert said(engine) == wanted
    assert loads


def test_held_callers_stand_still_and_go_on(wanted):
    engine = engines.engine()
    requests = [engines.request(prompt, LIMIT) for prompt in PROMPTS]

    def hold(step):
        for at, request in enumerate(requests):
            engine.hold(request, held=step < 60 and (step + at) % 3 == 0)

    found = engines.run(engine, requests, during=hold)
    assert [found[at, 0].tokens for at in range(len(PROMPTS))] == wanted


def test_who_leaves_frees_its_blocks_at_once(wanted):
    engine = engines.engine()
    leaver, stayer = engines.request(PROMPTS[5], 200), engines.request(PROMPTS[4], LIMIT)

    def leave(step):
        if step == 3:
            before = engine.scheduler.usage
            engine.drop(leaver)
            assert engine.scheduler.usage < before

    found = engines.run(engine, [leaver, stayer], during=leave)
    assert found[1, 0].tokens == wanted[4]
    assert not found[0, 0].finish
    assert engine.scheduler.usage == 0


def test_several_choices_begin_with_one_prompt(wanted):
    engine = engines.engine(enable_prefix_caching=False)
    found = engines.run(engine, [engines.request(PROMPTS[5], LIMIT, n=4), engines.request(PROMPTS[3], LIMIT)])
    assert [found[0, choice].tokens for choice in range(4)] == [wanted[5]] * 4
    assert found[1, 0].tokens == wanted[3]
    assert engine.spent.prompt_tokens == len(PROMPTS[5]) + len(PROMPTS[3])


def test_drafts_are_taken_where_the_text_repeats():
    engine = engines.engine(speculation=Speculation(tokens=4, shortest_match=1))
    prompt = PROMPTS[4]
    limit = 150
    found = engines.run(engine, [engines.request(prompt, limit)])
    assert found[0, 0].tokens == engines.greedy(prompt, limit)
    assert engine.spent.accepted > 0
    assert engine.spent.iterations < limit
