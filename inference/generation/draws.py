"""Numbers that look random and are none: a hash of (seed, choice, number of the token, what it is for).

So whoever asks again, for a row that is computed anew or beside others, gets the same number again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Ints = np.ndarray[Any, np.dtype[np.int64]]
Seeds = np.ndarray[Any, np.dtype[np.uint64]]
Numbers = np.ndarray[Any, np.dtype[np.float64]]
GOLDEN, _MIX1, _MIX2 = (np.uint64(one) for one in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
TOKEN, DRAFT, ACCEPT, INSTEAD = range(4)  # what a number is for; those for one token are independent of each other


def seed_of(seed: int, choice: int) -> np.uint64:
    """The seed of one choice of a request."""
    return np.uint64(_mixed(np.array([(seed + choice * int(GOLDEN)) & (1 << 64) - 1], np.uint64))[0])


def uniform(seeds: Seeds, numbers: Ints, purpose: int = TOKEN) -> Numbers:
    """A number in [0, 1) for each (seed, number of the token): splitmix64, 53 bits (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        own = _mixed(seeds + np.uint64(purpose) * _MIX1) if purpose else seeds
        mixed = _mixed(own + (numbers.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def inverse(weights: torch.Tensor, numbers: Numbers) -> Ints:
    """For each row the first place whose cumulated weight exceeds its number; weights need not sum to 1. int64 [R]."""
    cumulated = weights.double().cumsum(dim=-1)
    goal = torch.from_numpy(numbers).to(weights.device)[:, None] * cumulated[:, -1:]
    at = torch.searchsorted(cumulated, goal, right=True)[:, 0]
    found: Ints = at.clamp_(max=weights.shape[1] - 1).cpu().numpy()
    return found


def verified(wanted: torch.Tensor, guessed: torch.Tensor, drafts: Ints, accepts: Numbers, instead: Numbers) -> Ints:
    """Speculative sampling (Leviathan et al. 2023): tokens that are distributed as `wanted` says, and are the draft as
    often as can be.

    wanted, guessed: float32 [R, V], the model's distribution p and the one, q, that the draft was drawn from; each sums
    to 1. drafts: int64 [R]. accepts, instead: float64 [R], two numbers in [0, 1). A draft x is kept with probability
    min(1, p(x) / q(x)); else the token comes from what p has more than q. int64 [R].
    """
    at = torch.from_numpy(drafts).to(wanted.device)[:, None]
    kept = torch.from_numpy(accepts).to(wanted.device) * guessed.gather(1, at)[:, 0] < wanted.gather(1, at)[:, 0]
    is_kept = kept.cpu().numpy()
    found = drafts.copy()
    if not is_kept.all():
        refused = torch.from_numpy(np.flatnonzero(~is_kept)).to(wanted.device)
        p = wanted[refused]
        more = (p - guessed[refused]).clamp_(min=0)
        more = torch.where(more.sum(dim=-1, keepdim=True) > 0, more, p)  # equal but for rounding
        found[~is_kept] = inverse(more, instead[~is_kept])
    return found


def _mixed(value: Seeds) -> Seeds:
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * _MIX1
        value = (value ^ (value >> np.uint64(27))) * _MIX2
    found: Seeds = value ^ (value >> np.uint64(31))
    return found
