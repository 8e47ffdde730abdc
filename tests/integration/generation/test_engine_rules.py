"""Stops, limits, seeds, log-probabilities and structure, seen at the engine."""

import math

import pytest
import torch

from inference.errors import InvalidInput, InvalidOutput, ModelFailed
from inference.generation.grammar import Grammars
from inference.models.language_tokenizer import load_tokenizer
from inference.protocol.generation import Structure
from tests.support import engines

PROMPT = list(range(20, 43))


def one(engine, **more):
    limit = more.pop("limit", 12)
    return engines.run(engine, [engines.request(more.pop("prompt", PROMPT), limit, **more)])[0, 0]


def test_length_and_stop_tokens_end_an_answer():
    greedy = engines.greedy(PROMPT, 12)
    told = one(engines.engine())
    assert (told.tokens, told.finish, told.stop_token) == (greedy, "length", None)
    stop = greedy[5]
    first = greedy.index(stop)
    told = one(engines.engine(), stops=frozenset({stop}))
    assert (told.tokens, told.finish, told.stop_token) == (greedy[: first + 1], "stop", stop)


def test_min_tokens_keep_stops_away():
    greedy = engines.greedy(PROMPT, 12)
    stop = greedy[0]
    told = one(engines.engine(), stops=frozenset({stop}), min_tokens=6)
    assert stop not in told.tokens[:6]


@pytest.mark.parametrize("filters", [{}, {"top_p": 0.8}, {"top_k": 20}, {"min_p": 0.02, "top_p": 0.95, "top_k": 100}])
def test_a_seed_gives_the_same_whatever_else_runs(filters):
    alone = one(engines.engine(), temperature=1.1, seed=7, **filters).tokens
    crowd = [engines.request(list(range(3 + at, 60 + at)), 30, temperature=1.0, seed=at) for at in range(5)]
    wanted = engines.request(PROMPT, 12, temperature=1.1, seed=7, **filters)
    found = engines.run(engines.engine(), [*crowd[:3], wanted, *crowd[3:]])
    assert found[3, 0].tokens == alone
    assert one(engines.engine(), temperature=1.1, seed=8, **filters).tokens != alone


def test_choices_of_one_seed_differ_and_repeat():
    found = engines.run(engines.engine(), [engines.request(PROMPT, 12, n=3, temperature=1.2, seed=5)])
    texts = [found[0, choice].tokens for choice in range(3)]
    assert len({tuple(text) for text in texts}) == 3
    again = engines.run(engines.engine(), [engines.request(PROMPT, 12, n=3, temperature=1.2, seed=5)])
    assert [again[0, choice].tokens for choice in range(3)] == texts


def logits_of(tokens):
    with torch.inference_mode():
        return engines.tiny()[1](torch.tensor([tokens])).logits[0]


def test_logprobs_are_the_models_own_before_all_rules():
    told = one(engines.engine(), logprobs=3, temperature=0.7, seed=2, logit_bias={50: 20.0}, limit=5)
    assert told.tokens == [50] * 5
    wanted = torch.log_softmax(logits_of(PROMPT + told.tokens), dim=-1)
    for at, (value, (ids, values)) in enumerate(zip(told.logprobs, told.likely, strict=True)):
        row = wanted[len(PROMPT) - 1 + at]
        assert math.isclose(value, row[50], abs_tol=1e-3)
        assert ids == row.topk(3).indices.tolist()
        assert values == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)


@pytest.mark.parametrize("budget", [16, 64])
def test_prompt_logprobs_come_once_and_whole(budget):
    engine = engines.engine(max_num_batched_tokens=budget)
    for _ in range(2):  # the second time the prefix cache would have it
        told = one(engine, prompt_logprobs=2, limit=3)
        wanted = torch.log_softmax(logits_of(PROMPT), dim=-1)
        own = [float(wanted[at, token]) for at, token in enumerate(PROMPT[1:])]
        assert told.prompt_logprobs == pytest.approx(own, abs=1e-3)
        assert told.tokens == engines.greedy(PROMPT, 3)


def test_penalties_match_their_definition():
    engine = engines.engine()
    told = one(engine, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.4, limit=10)
    said: list[int] = []
    for _ in range(10):
        row = logits_of(PROMPT + said)[-1].clone()
        seen = sorted(set(PROMPT + said))
        row[seen] = torch.where(row[seen] > 0, row[seen] / 1.3, row[seen] * 1.3)
        for token in set(said):
            row[token] -= 0.5 + 0.4 * said.count(token)
        said.append(int(row.argmax()))
    assert told.tokens == said


def test_bad_words_never_come():
    greedy = engines.greedy(PROMPT, 12)
    told = one(engines.engine(), bad_words=[[greedy[0]], greedy[1:3]])
    assert greedy[0] not in told.tokens
    pairs = list(zip(told.tokens, told.tokens[1:], strict=False))
    assert tuple(greedy[1:3]) not in pairs


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_structure_is_kept(temperature):
    engine = engines.engine()
    tokenizer = load_tokenizer(engines.tiny()[0])
    engine.grammars = Grammars(tokenizer, vocabulary_size=320, stops={engines.MARKS_END})
    grammar = engine.grammars.compile(Structure(choice=["yes, please", "no"]))
    requests = [
        engines.request(PROMPT, 30, temperature=temperature, seed=at, grammar=grammar, stops=frozenset({2}))
        for at in range(4)
    ]
    plain = engines.request(PROMPT, 12)
    found = engines.run(engine, [*requests, plain])
    for at in range(4):
        text = tokenizer.decode(found[at, 0].tokens)
        assert text in {"yes, please", "no"}
        assert found[at, 0].finish == "stop"
    assert found[4, 0].tokens == engines.greedy(PROMPT, 12)


def test_a_grammar_may_begin_behind_the_thoughts():
    engine = engines.engine()
    tokenizer = load_tokenizer(engines.tiny()[0])
    engine.grammars = Grammars(tokenizer, vocabulary_size=320, stops={engines.MARKS_END})
    thoughts = engines.greedy(PROMPT, 6)
    after = thoughts[2]
    grammar = engine.grammars.compile(Structure(choice=["no"]))
    told = one(engine, limit=20, grammar=grammar, grammar_after=after, stops=frozenset({2}))
    cut = thoughts.index(after) + 1
    assert told.tokens[:cut] == thoughts[:cut]
    assert tokenizer.decode(told.tokens[cut:]) == "no"


def test_what_can_never_fit_is_refused_with_both_numbers():
    told = one(engines.engine(), limit=600)
    assert isinstance(told.error, InvalidInput)
    assert "23" in told.error.message
    assert "512" in told.error.message


def test_an_error_of_the_model_ends_those_in_the_pass_and_nobody_else():
    engine = engines.engine()
    forward = engine.model.forward
    steps = []

    def failing(step):
        steps.append(step)
        if len(steps) == 3:
            raise RuntimeError("a kernel failed")
        return forward(step)

    engine.model.forward = failing
    first, second = engines.request(PROMPT, 12), engines.request(PROMPT[::-1], 12)
    found = engines.run(engine, [first, second])
    assert all(isinstance(told.error, ModelFailed) for told in found.values())
    assert one(engine).tokens == engines.greedy(PROMPT, 12)


def test_logits_that_are_no_numbers_end_only_their_own_answer():
    engine = engines.engine()
    forward = engine.model.forward

    def broken(step):
        logits = forward(step).clone()
        logits[0, 5] = math.nan
        return logits

    requests = [engines.request(PROMPT, 8), engines.request(PROMPT[:9], 8)]
    for request in requests:
        engine.add(request)
    engine.model.forward = broken
    outputs = engine.step()
    engine.model.forward = forward
    assert [type(output.error) for output in outputs] == [InvalidOutput, type(None)]
