"""SmolLM2 says token for token what transformers says on the same weights in fp32, however it is run.

The six rows of `manners.ARRAY` cover every pair of: alone or together, chunked or whole prefill, prefix cache hit or miss,
preempted or not, with prompt lookup or without, streamed or not. tests/integration/generation/test_engine_manners.py has all
combinations of a tiny model.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import astuple

import pytest
import torch

from tests.support import manners, smollm2
from tests.support.manners import ARRAY, BLOCK, Manner

pytestmark = pytest.mark.timeout(300)  # a minute of computing, on a machine that may be busy
LIMIT = 16
PROMPTS = 8


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two test processes share two cores: threads that wait for each other would spin the time away."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def asked() -> list[list[int]]:
    return smollm2.prompts(PROMPTS)


@pytest.fixture(scope="module")
def wanted(asked: list[list[int]]) -> list[list[int]]:
    found = [smollm2.greedy(prompt, LIMIT) for prompt in asked]
    smollm2.theirs.cache_clear()
    return found


def test_the_rows_hold_every_pair_of_values() -> None:
    for first, second in itertools.combinations(zip(*map(astuple, ARRAY), strict=True), 2):
        assert set(zip(first, second, strict=True)) == set(itertools.product((False, True), repeat=2))


@pytest.mark.parametrize("manner", ARRAY, ids=lambda manner: "".join(str(int(one)) for one in astuple(manner)))
def test_every_manner_says_what_transformers_says(
    manner: Manner, asked: list[list[int]], wanted: list[list[int]]
) -> None:
    engine = manners.engine(smollm2.ours(), manner, asked, LIMIT)
    found = asyncio.run(manners.said(manner, engine, smollm2.text(), asked, LIMIT))
    assert [one.tokens for one in found] == wanted
    counts, spent = engine.scheduler.counts, engine.spent
    assert (counts.preempted > 0) == manner.preempted
    if manner.preempted and not manner.together:
        assert counts.preempted == PROMPTS, "each was disturbed once"
    assert all((one.cached >= BLOCK) == manner.prefix_hit for one in found)
    assert (spent.accepted > 0) == manner.speculative
    assert any(one.events > 1 for one in found) == manner.streamed
