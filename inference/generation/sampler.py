"""Logits -> tokens, for all rows of an iteration at once.

The law: what a row gives depends on its own logits, its request's rules, its seed and the number of its token, and on
nothing else in the batch. Randomness is a hash of (seed, choice, number of the token), so a row that is computed anew,
or that verifies a draft, draws the same number again. The order of the filters is vLLM's: logit bias, tokens that may
not come, penalties, grammar, temperature, min_p, top_k, top_p. Log-probabilities are the model's own, before all of it.

The token is where the cumulated distribution, in the order of ids, first exceeds the number drawn. A draft that is one
token for certain (n-gram, greedy draft model) is accepted where this token is the draft: that is speculative sampling
(Leviathan et al. 2023) for a point mass, and keeps the output exactly as it would be without drafts.

L: rows of logits. V: vocabulary. A slot holds the rules of one choice from `add` to `remove`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from inference.protocol.generation import Sampling

MAX_TOP = 256  # rows with a filter look at so many likeliest tokens first, and at all where these are not enough
GREEDY_BELOW = 1e-5  # a smaller temperature is greedy
_GOLDEN, _MIX1, _MIX2 = (np.uint64(one) for one in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
Ints = np.ndarray[Any, np.dtype[np.int64]]
Seeds = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of the logits give a token. rows: int64 [R], rows of L (one may be there twice, for `n` choices).
    slots: int64 [R]. numbers: int64 [R], how many tokens of the answer precede. masks: int32 [L, words] or None, bit i
    of word w set where token 32 * w + i may come; masked: rows of R that have one.
    """

    rows: Ints
    slots: Ints
    numbers: Ints
    masks: np.ndarray[Any, np.dtype[np.int32]] | None = None
    masked: Ints | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """tokens: of each row; -1 where its logits were not numbers. logprobs and top (ids, logprobs): None for a row that
    wants none.
    """

    tokens: list[int]
    logprobs: list[float | None]
    top: list[tuple[list[int], list[float]] | None]


@dataclass(slots=True)
class _Rules:
    """What only some requests have, by slot."""

    bias: tuple[torch.Tensor, torch.Tensor] | None = None
    banned: torch.Tensor | None = None
    banned_until: int = 0
    bad_words: list[list[int]] = field(default_factory=list)
    output: list[int] | None = None


class Sampler:
    """Slots of rules. device: where the logits are."""

    def __init__(self, vocabulary: int, device: str = "cpu") -> None:
        self.vocabulary = vocabulary
        self._device = device
        self._free: list[int] = []
        self._count = 0
        self._temperature = np.zeros(0, np.float32)
        self._min_p = np.zeros(0, np.float32)
        self._top_p = np.zeros(0, np.float32)
        self._top_k = np.zeros(0, np.int64)
        self._seed = np.zeros(0, np.uint64)
        self._logprobs = np.zeros(0, np.int64)
        self._special = np.zeros(0, bool)  # has _Rules to be looked at
        self._penalties = np.zeros((0, 3), np.float32)  # repetition, presence, frequency
        self._place = np.zeros(0, np.int64)  # row of the counts, -1 for no penalties
        self._rules: dict[int, _Rules] = {}
        self._counts = torch.zeros((0, vocabulary), dtype=torch.int32, device=device)
        self._prompts = torch.zeros((0, vocabulary), dtype=torch.bool, device=device)
        self._free_places: list[int] = []

    # --- coming and going -----------------------------------------------------------------------------------------

    def add(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        *,
        choice: int = 0,
        banned: Sequence[int] = (),
        bad_words: Sequence[list[int]] = (),
        output: list[int] | None = None,
    ) -> int:
        """A slot for one choice. banned: ids that may not come before `min_tokens`; bad_words: token sequences that may
        never come; output: the choice's tokens as they grow, which bad words look at.
        """
        slot = self._free.pop() if self._free else self._new_slot()
        self._temperature[slot] = sampling.temperature if sampling.temperature >= GREEDY_BELOW else 0.0
        self._min_p[slot] = sampling.min_p
        self._top_p[slot] = sampling.top_p
        self._top_k[slot] = sampling.top_k if 0 < sampling.top_k < self.vocabulary else self.vocabulary
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(64)
        self._seed[slot] = _mixed(np.array([(seed + choice * int(_GOLDEN)) & (1 << 64) - 1], np.uint64))[0]
        self._logprobs[slot] = -1 if sampling.logprobs is None else sampling.logprobs
        self._penalties[slot] = sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty
        self._place[slot] = self._place_for(slot, prompt)
        rules = self._rules_of(sampling, banned, bad_words, output)
        self._special[slot] = rules is not None
        if rules is not None:
            self._rules[slot] = rules
        return slot

    def remove(self, slot: int) -> None:
        if self._place[slot] >= 0:
            self._free_places.append(int(self._place[slot]))
            self._place[slot] = -1
        self._rules.pop(slot, None)
        self._free.append(slot)

    def has_memory(self, slot: int) -> bool:
        """Whether a token changes what may come after it, so that drafts cannot be verified side by side."""
        rules = self._rules.get(slot)
        return self._place[slot] >= 0 or (rules is not None and bool(rules.bad_words))

    def observe(self, slot: int, tokens: Sequence[int]) -> None:
        """These tokens were taken into the choice's answer."""
        place = int(self._place[slot])
        if place >= 0:
            for token in tokens:
                self._counts[place, token] += 1

    def _new_slot(self) -> int:
        if self._count == len(self._seed):
            size = max(16, 2 * self._count)
            for name in ("_temperature", "_min_p", "_top_p", "_top_k", "_seed", "_logprobs", "_special", "_place"):
                old = getattr(self, name)
                setattr(self, name, np.resize(old, size) if len(old) else np.zeros(size, old.dtype))
            self._penalties = np.concatenate([self._penalties, np.zeros((size - self._count, 3), np.float32)])
            self._place[self._count :] = -1
        self._count += 1
        return self._count - 1

    def _place_for(self, slot: int, prompt: Sequence[int]) -> int:
        repetition, presence, frequency = self._penalties[slot]
        if repetition == 1 and not presence and not frequency:
            return -1
        if not self._free_places:
            old = self._counts.shape[0]
            more = max(4, old)
            self._counts = torch.cat([self._counts, self._counts.new_zeros((more, self.vocabulary))])
            self._prompts = torch.cat([self._prompts, self._prompts.new_zeros((more, self.vocabulary))])
            self._free_places = list(range(old + more - 1, old - 1, -1))
        place = self._free_places.pop()
        self._counts[place].zero_()
        self._prompts[place].zero_()
        self._prompts[place, torch.tensor(list(prompt), device=self._device)] = True
        return place

    def _rules_of(
        self, sampling: Sampling, banned: Sequence[int], bad_words: Sequence[list[int]], output: list[int] | None
    ) -> _Rules | None:
        rules = _Rules(bad_words=[list(one) for one in bad_words], output=output)
        bias = {token: value for token, value in sampling.logit_bias.items() if 0 <= token < self.vocabulary}
        if bias:
            rules.bias = self._tensor(list(bias), torch.int64), self._tensor(list(bias.values()), torch.float32)
        if banned and sampling.min_tokens > 0:
            rules.banned, rules.banned_until = self._tensor(list(banned), torch.int64), sampling.min_tokens
        return rules if rules.bias is not None or rules.banned is not None or rules.bad_words else None

    def _tensor(self, values: list[Any], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=self._device)

    # --- sampling -------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, asked: Rows) -> Sampled:
        """Tokens for `asked`. logits: float32 [L, V], left as they are."""
        slots = asked.slots
        told, top = self._told(logits, asked)
        rows = torch.from_numpy(asked.rows).to(logits.device)
        is_all = len(asked.rows) == logits.shape[0] and bool((asked.rows == np.arange(len(asked.rows))).all())
        work = logits if is_all else logits[rows]
        changed = self._changed(slots)
        if changed or asked.masks is not None:
            work = self._ruled(work.clone() if is_all else work, asked)
        tokens = np.full(len(slots), -1, np.int64)
        temperature = self._temperature[slots]
        greedy = temperature == 0
        best, at = work.max(dim=-1)
        is_number = torch.isfinite(best).cpu().numpy()
        if greedy.any():
            tokens[greedy] = at.cpu().numpy()[greedy]
        drawn = np.flatnonzero(~greedy & is_number)
        if len(drawn):
            tokens[drawn] = self._drawn(work, asked, drawn)
        tokens[~is_number] = -1
        found = tokens.tolist()
        return Sampled(found, *self._logprobs_of(told, top, found, slots))

    def logprobs(
        self, logits: torch.Tensor, tokens: Sequence[int], top: int
    ) -> tuple[list[float], list[list[int]], list[list[float]]]:
        """The model's log-probability of `tokens` after each row, and the `top` likeliest there: for prompts."""
        told = torch.log_softmax(logits, dim=-1)
        own = told.gather(1, torch.tensor(list(tokens), device=told.device)[:, None])[:, 0]
        likely = told.topk(top, dim=-1) if top else None
        ids = likely.indices.tolist() if likely is not None else [[] for _ in tokens]
        values = likely.values.tolist() if likely is not None else [[] for _ in tokens]
        return own.tolist(), ids, values

    def _changed(self, slots: Ints) -> bool:
        return bool(self._special[slots].any() or (self._place[slots] >= 0).any())

    def _ruled(self, work: torch.Tensor, asked: Rows) -> torch.Tensor:
        """`work` [R, V], changed in place, with all rules but temperature and the filters."""
        slots = asked.slots
        for row in np.flatnonzero(self._special[slots]).tolist():
            self._special_rules(work[row], self._rules[int(slots[row])], int(asked.numbers[row]))
        penalised = np.flatnonzero(self._place[slots] >= 0)
        if len(penalised):
            self._penalise(work, penalised, slots[penalised])
        if asked.masks is not None and asked.masked is not None and len(asked.masked):
            masks = torch.from_numpy(asked.masks[asked.rows[asked.masked]]).to(work.device)
            bits = (masks[:, :, None] >> torch.arange(32, dtype=torch.int32, device=work.device)) & 1
            allowed = bits.view(len(asked.masked), -1)[:, : self.vocabulary].bool()
            chosen = torch.from_numpy(asked.masked).to(work.device)
            work[chosen] = work[chosen].masked_fill(~allowed, -torch.inf)
        return work

    def _special_rules(self, row: torch.Tensor, rules: _Rules, number: int) -> None:
        if rules.bias is not None:
            ids, values = rules.bias
            row[ids] += values
        if rules.banned is not None and number < rules.banned_until:
            row[rules.banned] = -torch.inf
        for word in rules.bad_words:
            before = word[:-1]
            output = (rules.output or [])[:number]
            if not before or output[-len(before) :] == before:
                row[word[-1]] = -torch.inf

    def _penalise(self, work: torch.Tensor, rows: Ints, slots: Ints) -> None:
        places = torch.from_numpy(self._place[slots]).to(work.device)
        counts, prompts = self._counts[places], self._prompts[places]
        strength = torch.from_numpy(self._penalties[slots]).to(work.device)
        at = torch.from_numpy(rows).to(work.device)
        logits = work[at]
        seen = (counts > 0) | prompts
        repetition = strength[:, 0:1]
        logits = torch.where(seen, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
        logits -= (counts > 0) * strength[:, 1:2] + counts * strength[:, 2:3]
        work[at] = logits

    def _drawn(self, work: torch.Tensor, asked: Rows, drawn: Ints) -> Ints:
        """Tokens of those rows [D] of `work` that are sampled."""
        slots = asked.slots[drawn]
        numbers = uniform(self._seed[slots], asked.numbers[drawn])
        filtered = (self._min_p[slots] > 0) | (self._top_p[slots] < 1) | (self._top_k[slots] < self.vocabulary)
        found = np.empty(len(drawn), np.int64)
        for chosen, pick in ((np.flatnonzero(~filtered), self._plain), (np.flatnonzero(filtered), self._filtered)):
            if len(chosen):
                rows = torch.from_numpy(drawn[chosen]).to(work.device)
                warm = torch.from_numpy(self._temperature[slots[chosen]]).to(work.device)
                logits = work[rows] / warm[:, None]
                found[chosen] = pick(logits, slots[chosen], numbers[chosen])
        return found

    def _plain(self, logits: torch.Tensor, _slots: Ints, numbers: np.ndarray[Any, np.dtype[np.float64]]) -> Ints:
        return _inverse(torch.softmax(logits, dim=-1), numbers)

    def _filtered(self, logits: torch.Tensor, slots: Ints, numbers: np.ndarray[Any, np.dtype[np.float64]]) -> Ints:
        """Looks at the MAX_TOP likeliest, and again at all for the rows whose filters let more through."""
        found = np.empty(len(slots), np.int64)
        rows = np.arange(len(slots))
        for most in (min(MAX_TOP, self.vocabulary), self.vocabulary):
            is_last = most == self.vocabulary
            kept, ids, enough = self._kept(logits[torch.from_numpy(rows).to(logits.device)], slots[rows], most)
            done = np.ones(len(rows), bool) if is_last else enough
            if done.any():
                chosen = torch.from_numpy(np.flatnonzero(done)).to(logits.device)
                order = ids[chosen].argsort(dim=-1)
                at = _inverse(kept[chosen].gather(1, order), numbers[rows[done]])
                picked = torch.from_numpy(at).to(logits.device)[:, None]
                found[rows[done]] = ids[chosen].gather(1, order).gather(1, picked)[:, 0].cpu().numpy()
            rows = rows[~done]
            if not len(rows):
                break
        return found

    def _kept(
        self, logits: torch.Tensor, slots: Ints, most: int
    ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray[Any, Any]]:
        """(probabilities with 0 for what is filtered out [R, most], ids [R, most], rows [R] where no more were kept)."""
        device = logits.device
        top_k = torch.from_numpy(self._top_k[slots]).to(device)[:, None]
        top_p = torch.from_numpy(self._top_p[slots]).to(device)[:, None]
        min_p = torch.from_numpy(self._min_p[slots]).to(device)[:, None]
        whole = torch.logsumexp(logits, dim=-1, keepdim=True)
        values, ids = logits.topk(most, dim=-1)
        probabilities = (values - whole).exp()
        rank = torch.arange(most, device=device)
        keep = (rank < top_k) & (probabilities >= min_p * probabilities[:, :1])
        # top_p is a share of what min_p and top_k leave, so that is summed first. Tokens are sorted, likeliest first.
        left = probabilities * keep
        is_cut = (top_k <= most)[:, 0] | (probabilities[:, -1] < min_p[:, 0] * probabilities[:, 0])
        total = torch.where(is_cut, left.sum(dim=-1), 1.0)[:, None]
        before = left.cumsum(dim=-1) - left
        keep &= (before < top_p * total) | (rank == 0)
        is_short = (left.sum(dim=-1, keepdim=True) >= top_p * total)[:, 0] & (top_p[:, 0] < 1)
        return probabilities * keep, ids, (is_cut | is_short).cpu().numpy()

    # --- log-probabilities ----------------------------------------------------------------------------------------

    def _told(self, logits: torch.Tensor, asked: Rows) -> tuple[torch.Tensor | None, Any]:
        """(log-probabilities [W, V], likeliest) of the rows that want them; None where nobody does."""
        wanted = np.flatnonzero(self._logprobs[asked.slots] >= 0)
        if not len(wanted):
            return None, None
        told = torch.log_softmax(logits[torch.from_numpy(asked.rows[wanted]).to(logits.device)], dim=-1)
        most = int(self._logprobs[asked.slots[wanted]].max())
        return told, told.topk(most, dim=-1) if most else None

    def _logprobs_of(
        self, told: torch.Tensor | None, top: Any, tokens: list[int], slots: Ints
    ) -> tuple[list[float | None], list[tuple[list[int], list[float]] | None]]:
        own: list[float | None] = [None] * len(tokens)
        likely: list[tuple[list[int], list[float]] | None] = [None] * len(tokens)
        if told is None:
            return own, likely
        wanted = np.flatnonzero(self._logprobs[slots] >= 0).tolist()
        chosen = torch.tensor([max(tokens[row], 0) for row in wanted], device=told.device)
        values = told.gather(1, chosen[:, None])[:, 0].tolist()
        ids = top.indices.tolist() if top is not None else None
        highest = top.values.tolist() if top is not None else None
        for at, row in enumerate(wanted):
            own[row] = values[at]
            many = int(self._logprobs[slots[row]])
            likely[row] = (ids[at][:many], highest[at][:many]) if ids is not None and highest is not None else ([], [])
        return own, likely


def uniform(seeds: Seeds, numbers: Ints) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A number in [0, 1) for each (seed, number of the token): splitmix64, 53 bits (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        mixed = _mixed(seeds + (numbers.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _mixed(value: Seeds) -> Seeds:
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * _MIX1
        value = (value ^ (value >> np.uint64(27))) * _MIX2
    found: Seeds = value ^ (value >> np.uint64(31))
    return found


def _inverse(weights: torch.Tensor, numbers: np.ndarray[Any, np.dtype[np.float64]]) -> Ints:
    """For each row the first place whose cumulated weight exceeds its number; weights need not sum to 1. int64 [R]."""
    cumulated = weights.double().cumsum(dim=-1)
    goal = torch.from_numpy(numbers).to(weights.device)[:, None] * cumulated[:, -1:]
    at = torch.searchsorted(cumulated, goal, right=True)[:, 0]
    found: Ints = at.clamp_(max=weights.shape[1] - 1).cpu().numpy()
    return found
