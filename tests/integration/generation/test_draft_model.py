"""A draft model changes how many tokens an iteration gives, and nothing about them: greedy, seeded, with a grammar."""

import math
import random

import pytest

from tests.support import engines

LIMIT = 14
MIND = random.Random(4)
PROMPTS = [[MIND.randrange(3, 300) for _ in range(size)] for size in (1, 3, 8, 9, 23, 40, 64, 90)]
NOISE = 0.02


@pytest.fixture(scope="module")
def wanted():
    return [engines.greedy(prompt, LIMIT) for prompt in PROMPTS]


@pytest.fixture(params=["like", "other"], scope="module")
def draft(request):
    """A draft model that guesses some tokens, and one that guesses nothing."""
    return (engines.tiny(noise=NOISE) if request.param == "like" else engines.tiny(engines.OTHER))[0]


def said(engine, prompts=PROMPTS, **more):
    found = engines.run(engine, [engines.request(prompt, LIMIT) for prompt in prompts], **more)
    assert all(told.error is None for told in found.values())
    return [found[at, 0].tokens for at in range(len(prompts))]


COMBINATIONS = [(16, 1, True), (16, 64, False), (64, 3, True), (512, 64, False), (512, 3, True)]


@pytest.mark.parametrize(("chunk", "seats", "caching"), COMBINATIONS)
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


@pytest.mark.parametrize(
    ("seed", "noise", "least", "most"),
    [(engines.SAME, 0.0, 1.0, 1.0), (engines.SAME, NOISE, 0.1, 0.9), (engines.OTHER, 0.0, 0.0, 0.1)],
    ids=["same", "like", "other"],
)
def test_the_better_the_draft_model_the_more_is_accepted(seed, noise, least, most):
    engine = engines.engine(draft=engines.tiny(seed, noise=noise)[0] if noise else engines.tiny(seed)[0])
    told = engines.run(engine, [engines.request(PROMPTS[4], 41)])[0, 0]
    assert told.tokens == engines.greedy(PROMPTS[4], 41)
    assert least <= engine.spent.accepted / engine.spent.drafted <= most
    assert (engine.spent.iterations == 1 + 40 // 4) == (least == 1.0)


def test_a_draft_model_reads_its_prompts_from_its_own_prefix_cache():
    engine = engines.engine(draft=engines.tiny()[0])
    read = []
    forward = engines.drafter(engine).model.forward
    engines.drafter(engine).model.forward = lambda step: (read.append(len(step.tokens)), forward(step))[1]
    for _ in range(2):
        read.clear()
        engines.run(engine, [engines.request(PROMPTS[7], 6)])
    assert max(read) == (len(PROMPTS[7]) - 1) % 8 + 2 - 1


def test_a_long_text_is_read_within_the_budget_before_it_has_drafts():
    engine = engines.engine(draft=engines.tiny()[0], max_num_batched_tokens=32, enable_prefix_caching=False)
    read = []
    forward = engines.drafter(engine).model.forward
    engines.drafter(engine).model.forward = lambda step: (read.append(len(step.tokens)), forward(step))[1]
    told = engines.run(engine, [engines.request(PROMPTS[7], 20)])[0, 0]
    assert told.tokens == engines.greedy(PROMPTS[7], 20)
    assert max(read) <= 32
    assert engine.spent.accepted > 0


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.8}, {"min_p": 0.02, "top_p": 0.95, "top_k": 100}])
def test_a_seed_gives_the_same_with_drafts_and_without(draft, filters):
    requests = [{"temperature": 1.1, "seed": seed, **filters} for seed in range(4)]

    def tokens(engine):
        found = engines.run(engine, [engines.request(PROMPTS[4], LIMIT, **one) for one in requests])
        return [found[at, 0].tokens for at in range(4)]

    engine = engines.engine(draft=draft)
    assert tokens(engine) == tokens(engines.engine())
    assert engine.spent.drafted > 0


def test_choices_of_one_seed_are_those_without_drafts(draft):
    asked = {"n": 3, "temperature": 1.2, "seed": 5}
    found = [
        engines.run(engine, [engines.request(PROMPTS[5], LIMIT, **asked), engines.request(PROMPTS[3], LIMIT)])
        for engine in (engines.engine(), engines.engine(draft=draft))
    ]
    for choice in range(3):
        assert found[0][0, choice].tokens == found[1][0, choice].tokens
    assert found[0][1, 0].tokens == found[1][1, 0].tokens


def test_stops_and_log_probabilities_are_those_without_drafts(wanted, draft):
    stop = wanted[4][5]
    asked = {"stops": frozenset({stop}), "logprobs": 2}
    plain, drafted = (
        engines.run(engine, [engines.request(PROMPTS[4], LIMIT, **asked)])[0, 0]
        for engine in (engines.engine(), engines.engine(draft=draft))
    )
    assert (drafted.tokens, drafted.finish, drafted.stop_token) == (plain.tokens, "stop", stop)
    assert drafted.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
    assert [ids for ids, _ in drafted.likely] == [ids for ids, _ in plain.likely]


def test_who_leaves_or_stands_still_leaks_nothing(wanted, draft):
    engine = engines.engine(draft=draft)
    leaver, stayer = engines.request(PROMPTS[5], 200, n=2, temperature=1.0), engines.request(PROMPTS[4], LIMIT)

    def during(step):
        engine.hold(stayer, held=2 < step < 9)
        if step == 6:
            engine.drop(leaver)
            engines.check_integrity(engine)

    found = engines.run(engine, [leaver, stayer], during=during)
    assert found[1, 0].tokens == wanted[4]
    assert engine.scheduler.usage == 0
    assert engines.drafter(engine).pool.usage == 0


def test_a_draft_model_with_a_shorter_context_stops_guessing():
    short = engines.tiny(engines.SAME, max_position_embeddings=32)[0]
    engine = engines.engine(draft=short)
    told = engines.run(engine, [engines.request(PROMPTS[4], 40)])[0, 0]
    assert told.tokens == engines.greedy(PROMPTS[4], 40)
    assert 0 < engine.spent.drafted < 40


def test_a_draft_model_that_fails_is_done_without(wanted, caplog):
    engine = engines.engine(draft=engines.tiny()[0])
    drafter, calls = engines.drafter(engine), []
    forward = drafter.model.forward

    def failing(step):
        calls.append(step)
        if len(calls) == 5:
            raise RuntimeError("a kernel failed")
        return forward(step)

    drafter.model.forward = failing
    assert said(engine, drafts_fail=True) == wanted
    assert len(calls) == 5
    assert "drafts failed" in caplog.text
    engines.check_integrity(engine)


def test_logits_of_the_draft_model_that_are_no_numbers_are_no_drafts(wanted):
    engine = engines.engine(draft=engines.tiny()[0])
    drafter = engines.drafter(engine)
    forward = drafter.model.forward
    drafter.model.forward = lambda step: forward(step) * math.nan
    assert said(engine) == wanted
    assert engine.spent.drafted == 0
