"""Prompt lookup, and the policy that switches drafts off where they do not pay."""

from hypothesis import given
from hypothesis import strategies as st

from inference.generation.drafts import AGAIN_AFTER, TRIAL, Drafts, Ngrams, Payoff
from inference.generation.plan import Plan
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


class Slow:
    """A proposer that guesses one token, after it has read a text of its own for `reading_s`."""

    def __init__(self, *reading_s):
        self.reading_s = list(reading_s)

    def enter(self, sequence):
        pass

    def forget(self):
        pass

    def propose(self, sequences, room):
        for sequence in sequences:
            sequence.drafts = [7][:room]
        return self.reading_s.pop(0) if self.reading_s else 0.0


def ran(drafts, sequence, seconds, *, accepted=1):
    """One iteration as the engine runs it; whether it had drafts."""
    sequence.drafts = []
    drafts.propose([sequence], 4)
    plan = Plan(16, decode_tokens=1, draft_tokens=len(sequence.drafts))
    if sequence.drafts:
        drafts.judged(accepted)
    drafts.timed(plan, seconds(bool(sequence.drafts)))
    return bool(sequence.drafts)


def text():
    return Sequence(1, [5, 6], 1000, computed=1)


def test_a_long_text_that_was_read_once_does_not_end_the_drafts():
    """An iteration took a hundred times as long, for the sake of all that follow."""
    reading = [0.0] * 300 + [1.0]
    drafts, sequence = Drafts(Slow(*reading)), text()
    before = [ran(drafts, sequence, lambda drafted: 0.012 if drafted else 0.010) for _ in range(200)]
    assert before[-1]
    while drafts.proposer.reading_s:
        last = drafts.proposer.reading_s[0]
        ran(drafts, sequence, lambda drafted, last=last: 0.012 + last if drafted else 0.010)
    after = [ran(drafts, sequence, lambda drafted: 0.012 if drafted else 0.010) for _ in range(20)]
    assert sum(after[:3]) == 3


def test_texts_that_take_longer_to_read_than_they_gain_end_the_drafts():
    drafts, sequence = Drafts(Slow(*[0.02] * 1000)), text()
    found = [ran(drafts, sequence, lambda drafted: 0.012 + 0.02 if drafted else 0.010) for _ in range(600)]
    assert sum(found[200:]) < 200


def test_after_the_warm_up_both_manners_are_tried_anew():
    drafts, sequence = Drafts(Slow()), text()
    for _ in range(100):
        ran(drafts, sequence, lambda drafted: 0.9 if drafted else 0.010)
    assert not ran(drafts, sequence, lambda drafted: 0.9 if drafted else 0.010)
    drafts.forget()
    assert ran(drafts, sequence, lambda drafted: 0.012 if drafted else 0.010)
