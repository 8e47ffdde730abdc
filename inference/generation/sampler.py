"""Logits -> tokens, for all rows of an iteration at once.

The law: what a row gives depends on its own logits, its request's rules, its seed and the number of its token, and on
nothing else in the batch. Randomness is a hash of (seed, choice, number of the token), so a row that is computed anew,
or that verifies a draft, draws the same number again. The order of the filters is vLLM's: logit bias, tokens that may
not come, penalties, grammar, temperature, min_p, top_k, top_p. Log-probabilities are the model's own, before all of it.

The token is where the cumulated distribution, in the order of ids, first exceeds the number drawn. A draft is accepted
where this token is the draft, so the output is exactly what it would be without drafts, whatever they are: greedy, and
where the caller gave a seed. (A draft model then draws with the same number, so that its token is mostly the same one.)
Where nobody chose the seed, a draft that was drawn from a known distribution is judged by speculative sampling instead
(`draws.verified`): other tokens than without drafts, but equally distributed, and more drafts are accepted.

L: rows of logits. V: vocabulary. A slot holds the rules of one choice from `add` to `remove`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from inference.generation.draws import ACCEPT, DRAFT, INSTEAD, Ints, Numbers, inverse, seed_of, uniform, verified
from inference.generation.rows import Guessed, Guesses, Rows, Sampled

__all__ = ["Guessed", "Guesses", "Rows", "Sampled", "Sampler"]

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference.protocol.generation import Sampling

MAX_TOP = 256  # rows with a filter look at so many likeliest tokens first, and at all where these are not enough
SLOTS = ("_temperature", "_min_p", "_top_p", "_top_k", "_seed", "_seeded", "_logprobs", "_special", "_place")
GREEDY_BELOW = 1e-5  # a smaller temperature is greedy


@dataclass(slots=True)
class _Rules:
    """What only some requests have, by slot."""

    bias: tuple[torch.Tensor, torch.Tensor] | None = None
    banned: torch.Tensor | None = None
    banned_until: int = 0
    bad_words: list[list[int]] = field(default_factory=list)
    output: list[int] | None = None


class Sampler:
    """Slots of rules. device: where the logits are. entropy: 64 bits for a choice without a seed."""

    def __init__(
        self, vocabulary: int, device: str = "cpu", entropy: Callable[[], int] = lambda: secrets.randbits(64)
    ) -> None:
        self.vocabulary = vocabulary
        self._device = device
        self._entropy = entropy
        self._free: list[int] = []
        self._count = 0
        self._temperature = np.zeros(0, np.float32)
        self._min_p = np.zeros(0, np.float32)
        self._top_p = np.zeros(0, np.float32)
        self._top_k = np.zeros(0, np.int64)
        self._seed = np.zeros(0, np.uint64)
        self._seeded = np.zeros(0, bool)  # the caller chose the seed
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
        self._seed[slot] = seed_of(self._entropy() if sampling.seed is None else sampling.seed, choice)
        self._seeded[slot] = sampling.seed is not None
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
            for name in SLOTS:
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
        told, top = self._told(logits, asked)
        tokens = self._chosen(self._ready(logits, asked), asked).tolist()
        return Sampled(tokens, *self._logprobs_of(told, top, tokens, asked.slots))

    @torch.inference_mode()
    def guess(self, logits: torch.Tensor, asked: Rows) -> Guessed:
        """Drafts by the same rules, out of the logits of another model. logits: float32 [L, V], left as they are."""
        work = self._ready(logits, asked)
        weights: list[torch.Tensor | None] = [None] * len(asked.slots)
        is_free = ~self._seeded[asked.slots] & (self._temperature[asked.slots] > 0)
        tokens = np.full(len(asked.slots), -1, np.int64) if is_free.all() else self._chosen(work, asked)
        if not is_free.any():
            return Guessed(tokens.tolist(), weights)
        free = np.flatnonzero(is_free & torch.isfinite(work.amax(dim=-1)).cpu().numpy())
        slots = asked.slots[free]
        drawn = self._weights(self._warm(work, asked, free), slots)
        tokens[free] = inverse(drawn, uniform(self._seed[slots], asked.numbers[free], DRAFT))
        for at, row in enumerate(free.tolist()):
            weights[row] = drawn[at]
        return Guessed(tokens.tolist(), weights)

    def _ready(self, logits: torch.Tensor, asked: Rows) -> torch.Tensor:
        """The rows that are asked for [R, V], with all rules but temperature and the filters."""
        rows = torch.from_numpy(asked.rows).to(logits.device)
        is_all = len(asked.rows) == logits.shape[0] and bool((asked.rows == np.arange(len(asked.rows))).all())
        work = logits if is_all else logits[rows]
        if self._changed(asked.slots) or asked.masks is not None:
            work = self._ruled(work.clone() if is_all else work, asked)
        return work

    def _chosen(self, work: torch.Tensor, asked: Rows) -> Ints:
        tokens = np.full(len(asked.slots), -1, np.int64)
        greedy = self._temperature[asked.slots] == 0
        best, at = work.max(dim=-1)
        is_number = torch.isfinite(best).cpu().numpy()
        if greedy.any():
            tokens[greedy] = at.cpu().numpy()[greedy]
        is_drawn = ~greedy & is_number
        if asked.guesses is not None:
            judged = np.flatnonzero(is_drawn[asked.guesses.rows])
            tokens[asked.guesses.rows[judged]] = self._judged(work, asked, asked.guesses, judged)
            is_drawn[asked.guesses.rows] = False
        drawn = np.flatnonzero(is_drawn)
        if len(drawn):
            tokens[drawn] = self._drawn(work, asked, drawn)
        tokens[~is_number] = -1
        return tokens

    def _judged(self, work: torch.Tensor, asked: Rows, guesses: Guesses, chosen: Ints) -> Ints:
        """Tokens of those of the guesses' rows: the draft where it is accepted, else another."""
        rows = guesses.rows[chosen]
        slots, numbers = asked.slots[rows], asked.numbers[rows]
        wanted = self._weights(self._warm(work, asked, rows), slots)
        numbers_of = [uniform(self._seed[slots], numbers, purpose) for purpose in (ACCEPT, INSTEAD)]
        guessed = guesses.weights[torch.from_numpy(chosen).to(work.device)]
        return verified(wanted, guessed, guesses.drafts[chosen], *numbers_of)

    def _warm(self, work: torch.Tensor, asked: Rows, rows: Ints) -> torch.Tensor:
        """Those rows of `work`, divided by their temperatures."""
        temperature = torch.from_numpy(self._temperature[asked.slots[rows]]).to(work.device)
        return work[torch.from_numpy(rows).to(work.device)] / temperature[:, None]

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
        filtered = self._is_filtered(slots)
        found = np.empty(len(drawn), np.int64)
        for chosen, pick in ((np.flatnonzero(~filtered), self._plain), (np.flatnonzero(filtered), self._filtered)):
            if len(chosen):
                found[chosen] = pick(self._warm(work, asked, drawn[chosen]), slots[chosen], numbers[chosen])
        return found

    def _is_filtered(self, slots: Ints) -> np.ndarray[Any, np.dtype[np.bool_]]:
        found: np.ndarray[Any, np.dtype[np.bool_]] = (
            (self._min_p[slots] > 0) | (self._top_p[slots] < 1) | (self._top_k[slots] < self.vocabulary)
        )
        return found

    def _weights(self, logits: torch.Tensor, slots: Ints) -> torch.Tensor:
        """The distribution that a token is drawn from, filters included; each row sums to 1. float32 [R, V]."""
        found = torch.softmax(logits, dim=-1)
        rows = np.flatnonzero(self._is_filtered(slots))
        for most in (min(MAX_TOP, self.vocabulary), self.vocabulary):
            if not len(rows):
                break
            at = torch.from_numpy(rows).to(logits.device)
            kept, ids, enough = self._kept(logits[at], slots[rows], most)
            found[at] = torch.zeros_like(found[at]).scatter_(1, ids, kept / kept.sum(dim=-1, keepdim=True))
            rows = rows[~enough]
        return found

    def _plain(self, logits: torch.Tensor, _slots: Ints, numbers: Numbers) -> Ints:
        return inverse(torch.softmax(logits, dim=-1), numbers)

    def _filtered(self, logits: torch.Tensor, slots: Ints, numbers: Numbers) -> Ints:
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
                at = inverse(kept[chosen].gather(1, order), numbers[rows[done]])
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
