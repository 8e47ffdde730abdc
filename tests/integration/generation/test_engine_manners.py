"""Greedy answers of a tiny random Llama are transformers', token for token, in every manner there is: alone or together,
chunked or whole prefill, prefix cache hit or miss, preempted or not, with drafts or without, streamed or not.
"""

import asyncio
import random
from dataclasses import astuple
from functools import cache

import pytest

from inference.generation.drafts import Drafts
from inference.models.language_tokenizer import load_tokenizer
from inference.models.on_torch.language import TorchLanguageModel, source_of
from inference.protocol.settings import GenerationSettings
from inference.replica.language_text import LanguageText
from tests.support import engines, manners
from tests.support.manners import BLOCK, EVERY, Manner

LIMIT = 24
MIND = random.Random(7)
SHARED = [MIND.randrange(3, 300) for _ in range(2 * BLOCK + 3)]
PROMPTS = [SHARED + [MIND.randrange(3, 300) for _ in range(size)] for size in (1, 3, 9, 20)]


@cache
def model():
    return TorchLanguageModel(source_of(engines.tiny()[0]), GenerationSettings(), "cpu")


@cache
def text():
    facts = model().facts
    return LanguageText(load_tokenizer(engines.tiny()[0]), facts, GenerationSettings(), max_context=facts.max_context)


@pytest.fixture(scope="module")
def wanted():
    found = [engines.greedy(prompt, LIMIT) for prompt in PROMPTS]
    # a token that ends an answer ends it in the engine, which transformers was told not to do
    return [tokens[: tokens.index(manners.EOS) + 1] if manners.EOS in tokens else tokens for tokens in found]


def test_all_of_them():
    assert len({astuple(one) for one in EVERY}) == 2**6


@pytest.mark.parametrize("manner", EVERY, ids=lambda manner: "".join(str(int(one)) for one in astuple(manner)))
def test_every_manner_says_what_transformers_says(manner: Manner, wanted):
    engine = manners.engine(model(), manner, PROMPTS, LIMIT)
    if manner.speculative:  # whether that pays or not
        engine.drafts = Drafts(engine.drafts.proposer, engines.Always())
    found = asyncio.run(manners.said(manner, engine, text(), PROMPTS, LIMIT))
    assert [one.tokens for one in found] == wanted
    engine.scheduler.check_integrity()
    assert engine.scheduler.usage == 0
    preempted = engine.scheduler.counts.preempted
    assert (preempted > 0) == manner.preempted
    if manner.preempted and not manner.together:
        assert preempted == len(PROMPTS), "each was disturbed once"
    assert all((one.cached >= BLOCK) == manner.prefix_hit for one in found)
    assert (engine.spent.drafted > 0) == manner.speculative
    assert all((one.events > 1) == manner.streamed for one in found)
