"""Prompt lookup, and the policy that switches drafts off where they do not pay."""

from hypothesis import given
from hypothesis import strategies as st

from inference.generation.drafts import AGAIN_AFTER, TRIAL, Ngrams, Payoff
from inference.generation.sequence import Sequence
from inference.protocol.settings import Speculation


def looked_up(settings, tokens, prompt):
    """What is drafted after each of `tokens`, when the first `prompt` of them are the prompt."""
    sequence = Sequence(1, tokens[:prompt], 1000)
    ngrams = Ngrams(settings)
    ngrams.enter(sequence)
    found = []
    for token in [*tokens[prompt:], None]:
        found.append(ngrams.drafts(sequence))
        if token is not None:
            sequence.output.append(token)
    return found


def slowly(settings, tokens):
    """The same by its definition: the longest run at the end that stood before, at its latest place."""
    for size in range(settings.longest_match, settings.shortest_match - 1, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                return tokens[end : end + settings.tokens]
    return []


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_it_finds_what_the_definition_finds(tokens, prompt, most, shortest):
    settings = Speculation(tokens=most, shortest_match=shortest, longest_match=4)
    prompt = min(prompt, len(tokens))
    found = looked_up(settings, tokens, prompt)
    assert found == [slowly(settings, tokens[: prompt + made]) for made in range(len(tokens) - prompt + 1)]


def iterations(payoff, count, cost):
    """How many of `count` iterations of four sequences had drafts, where cost(drafted) gives (seconds, tokens)."""
    drafted = 0
    for _ in range(count):
        wants = payoff.wants(4)
        seconds, tokens = cost(wants)
        payoff.took(4, drafted=wants, seconds=seconds, tokens=tokens)
        drafted += wants
    return drafted


def test_drafts_that_pay_go_on_and_others_are_only_tried():
    paying = iterations(Payoff(), 1000, lambda drafted: (0.012, 8) if drafted else (0.010, 4))
    wasted = iterations(Payoff(), 1000, lambda drafted: (0.016, 4) if drafted else (0.010, 4))
    tries = 1 + 1000 // AGAIN_AFTER
    assert paying >= 1000 - tries * TRIAL
    assert wasted <= tries * TRIAL


def test_it_changes_its_mind_when_the_texts_change():
    payoff = Payoff()
    iterations(payoff, 300, lambda drafted: (0.016, 4) if drafted else (0.010, 4))
    later = iterations(payoff, 1000, lambda drafted: (0.012, 8) if drafted else (0.010, 4))
    assert later > 400
