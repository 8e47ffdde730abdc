"""Arbitrary arrivals, priorities, cancellations, forks, drafts, slow readers and memory sizes, against a hand-made model.

After every step: the tables are sound, the budget is kept, nobody was admitted beside a preemption, and each sequence
reads its own text. At the end: everybody whose caller stayed has exactly the text that it would have had alone.
"""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from inference.generation.scheduler import BACKGROUND, Limits
from tests.support.iterations import World

LIMITS = st.builds(
    Limits,
    token_budget=st.integers(1, 32),
    max_sequences=st.integers(1, 8),
    max_context=st.integers(12, 60),
    long_prefill_threshold=st.sampled_from([0, 0, 1, 3]),
    watermark=st.sampled_from([0.0, 0.01, 0.3]),
    patience=st.integers(0, 3),
)
TEXT = [0, 1, 1, 0, 2, 0, 1, 2, 2, 1, 0, 0, 2, 1, 1, 1, 0, 2, 2, 0, 1, 0, 2, 1]
SHARED = st.integers(1, len(TEXT)).map(lambda length: TEXT[:length])
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=24) | SHARED


POOLS = st.tuples(st.integers(1, 48), st.integers(1, 5), st.booleans(), st.sampled_from([0, 0, 1, 3, 8]))
TIGHT = st.tuples(st.integers(6, 20), st.integers(1, 3), st.just(True), st.integers(1, 4))


ASKED = st.fixed_dictionaries(
    {
        "prompt": PROMPTS,
        "most": st.integers(1, 12),
        "priority": st.sampled_from([0, 0, 0, 1, BACKGROUND]),
        "salt": st.sampled_from([b"", b"", b"one"]),
        "adapter": st.sampled_from([0, 0, 1]),
        "every": st.sampled_from([False, False, False, True]),
        "children": st.sampled_from([0, 0, 1, 3]),
    }
)


class Iterations(RuleBasedStateMachine):
    @initialize(limits=LIMITS, shape=POOLS | TIGHT)
    def begin(self, limits, shape):
        self.world = World(limits, shape)

    @rule(asked=st.lists(ASKED, min_size=1, max_size=4))
    def arrive(self, asked):
        for one in asked:
            self.world.arrive(**one)

    @precondition(lambda self: self.world.live)
    @rule(data=st.data())
    def leave(self, data):
        self.world.leave(data.draw(st.sampled_from(self.world.live)))

    @precondition(lambda self: self.world.live)
    @rule(data=st.data())
    def read_slowly_or_on(self, data):
        sequence = data.draw(st.sampled_from(self.world.live))
        sequence.held = not sequence.held

    @rule()
    def lose_the_cache(self):
        self.world.lose_the_cache()

    @rule(many=st.integers(1, 6), guesses=st.integers(0, 4), wrong_at=st.integers(0, 4), leaver=st.integers(0, 30))
    def step(self, many, guesses, wrong_at, leaver):
        for _ in range(many):
            self.world.step(guesses, wrong_at, leaver)

    def teardown(self):
        if hasattr(self, "world"):
            self.world.verify()


Iterations.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestIterations = Iterations.TestCase


def asked_by(draw: random.Random) -> dict:
    length = draw.randint(1, len(TEXT))
    return {
        "prompt": TEXT[:length] if draw.random() < 0.8 else draw.choices([0, 1], k=length),
        "most": draw.randint(1, 12),
        "priority": draw.choice([0, 0, 0, 1, BACKGROUND]),
        "salt": draw.choice([b"", b"", b"", b"one"]),
        "adapter": draw.choice([0, 0, 0, 1]),
        "every": draw.random() < 0.1,
        "children": draw.choice([0, 0, 0, 1, 3]),
    }


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), limits=LIMITS, shape=POOLS | TIGHT, waits=st.sampled_from([2, 8, 16]))
def test_a_long_storm_ends_well(seed, limits, shape, waits):
    """Hypothesis draws short lives; this one draws long ones, in which memory and host tier turn over many times."""
    draw, world = random.Random(seed), World(limits, shape)
    for _ in range(150):
        while len(world.live) < waits and draw.random() < 0.5:
            asked = asked_by(draw)
            most = asked["most"] = min(asked["most"], world.scheduler.max_context - 1)
            asked["prompt"] = asked["prompt"][: world.scheduler.max_context - most]
            if most:
                world.arrive(**asked)
        if world.live and draw.random() < 0.03:
            world.leave(draw.choice(world.live))
        if world.live and draw.random() < 0.05:
            one = draw.choice(world.live)
            one.held = not one.held
        if draw.random() < 0.005:
            world.lose_the_cache()
        world.step(draw.choice([0, 0, 1, 4]), draw.randint(0, 4), draw.randint(0, 100))
    world.verify()
