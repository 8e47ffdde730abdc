"""Drafts that were drawn change no distribution: what comes out is distributed as the model alone would have it."""

import random
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from inference.generation import draws
from inference.generation.sampler import Guesses, Rows, Sampler
from inference.protocol.generation import Sampling
from tests.support import engines

DRAWS, V = 20_000, 12
SURE = 1e-4  # the probability with which a sound test would fail, were its seed not fixed


def chi_square(counts, expected):
    """The probability of a deviation as large, by the Wilson-Hilferty approximation."""
    kept = expected > 5
    counts = np.append(counts[kept], counts[~kept].sum())
    expected = np.append(expected[kept], expected[~kept].sum())
    filled = expected > 0
    assert not counts[~filled].any(), "something came that cannot"
    statistic = ((counts - expected)[filled] ** 2 / expected[filled]).sum()
    degrees = max(int(filled.sum()) - 1, 1)
    z = ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / np.sqrt(2 / (9 * degrees))
    return float(0.5 * torch.erfc(torch.tensor(z / np.sqrt(2))))


def filtered(logits, *, temperature, top_k=0, top_p=1.0, min_p=0.0):
    """The distribution by its definition: temperature, min_p, top_k, top_p."""
    p = torch.softmax(logits.double() / temperature, dim=-1)
    p = torch.where(p >= min_p * p.max(), p, 0)
    order = p.argsort(descending=True)
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    before = p[order].cumsum(0) - p[order]
    p[order[before >= top_p]] = 0
    return (p / p.sum()).numpy()


RULES = {
    "plain": {"temperature": 1.0},
    "hot": {"temperature": 1.7},
    "top_p": {"temperature": 1.0, "top_p": 0.7},
    "filters": {"temperature": 0.8, "min_p": 0.05, "top_k": 6, "top_p": 0.95},
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@pytest.mark.parametrize("likeness", [0.0, 0.7, 1.0], ids=["other", "like", "same"])
def test_a_judged_draft_is_distributed_as_the_model_says(rules, likeness):
    torch.manual_seed(2)
    wanted = torch.randn(V) * 1.5
    guess = likeness * wanted + (1 - likeness) * torch.randn(V) * 1.5
    sampler = Sampler(V, entropy=partial(random.Random(3).getrandbits, 64))
    slots = np.array([sampler.add(Sampling(**rules), [1]) for _ in range(DRAWS)])
    numbers, rows = np.full(DRAWS, 5), np.zeros(DRAWS, np.int64)
    drafts = sampler.guess(guess[None], Rows(rows, slots, numbers))
    tokens = np.array(drafts.tokens)
    assert chi_square(np.bincount(tokens, minlength=V), DRAWS * filtered(guess, **rules)) > SURE
    guesses = Guesses(np.arange(DRAWS), tokens, torch.stack(drafts.weights))
    found = np.array(sampler.sample(wanted[None], Rows(rows, slots, numbers, guesses=guesses)).tokens)
    p, q = filtered(wanted, **rules), filtered(guess, **rules)
    assert chi_square(np.bincount(found, minlength=V), DRAWS * p) > SURE
    # As many are accepted as can be: all but the distance between the two distributions.
    assert np.mean(found == tokens) == pytest.approx(np.minimum(p, q).sum(), abs=0.015)


def test_what_is_drawn_for_one_token_is_independent():
    seeds = np.random.default_rng(1).integers(0, 2**63, DRAWS).astype(np.uint64)
    purposes = (draws.TOKEN, draws.DRAFT, draws.ACCEPT, draws.INSTEAD)
    found = np.stack([draws.uniform(seeds, np.full(DRAWS, 9), purpose) for purpose in purposes])
    assert np.abs(np.corrcoef(found) - np.eye(4)).max() < 0.03
    assert np.abs(found.mean(axis=1) - 0.5).max() < 0.01


LENGTH, CHOICES, REQUESTS = 5, 64, 15
PROMPT = list(range(40, 52))
NARROW = {"temperature": 1.4, "top_k": 2}  # 32 texts


def texts(engine):
    """How often each text came, over all choices of all requests."""
    requests = [engines.request(PROMPT, LENGTH, n=CHOICES, **NARROW) for _ in range(REQUESTS)]
    return Counter(tuple(told.tokens) for told in engines.run(engine, requests).values())


def true_texts():
    """The probability of each, by transformers."""
    found = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        with torch.inference_mode():
            logits = engines.tiny()[1](torch.tensor([PROMPT + list(text) for text in found])).logits[:, -1]
        for (text, probability), row in zip(found.items(), logits, strict=True):
            p = filtered(row, **NARROW)
            longer |= {(*text, int(token)): probability * p[token] for token in np.flatnonzero(p)}
        found = longer
    return found


@pytest.mark.parametrize("seed", [engines.SAME, engines.OTHER], ids=["same", "other"])
def test_whole_texts_are_distributed_as_without_drafts(seed):
    engine = engines.engine(draft=engines.tiny(seed)[0], blocks=512, max_num_seqs=128, max_num_batched_tokens=1024)
    engine.sampler._entropy = partial(random.Random(6).getrandbits, 64)
    counts, wanted = texts(engine), true_texts()
    many = counts.total()
    assert many == CHOICES * REQUESTS
    assert set(counts) <= set(wanted)
    seen = np.array([counts[text] for text in wanted])
    assert chi_square(seen, many * np.array(list(wanted.values()))) > SURE
    assert engine.spent.drafted > many
    if seed == engines.SAME:
        assert engine.spent.accepted == engine.spent.drafted
