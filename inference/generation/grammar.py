"""Structured output: which tokens may come next, by llguidance, so that the text is what was asked for.

The tokenizer's data is built once per model. A `Grammar` is compiled once per structure (a few are kept) and gives each
sequence a `Matcher` of its own. Masks are computed by llguidance's threads, with the interpreter's lock released, so the
engine fills them while the forward pass runs. A mask is int32 words, bit i of word w for token 32 * w + i, 1 for allowed.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from llguidance.numpy import (
    fill_next_token_bitmask,
    fill_next_token_bitmask_par,
    fill_next_token_bitmask_par_with_draft_tokens,
)

from inference.errors import InvalidInput, Unsupported
from inference.generation.vocabulary import Vocabulary
from inference.protocol.generation import Structure

Masks = np.ndarray[Any, np.dtype[np.int32]]
MAX_SOURCE = 1 << 16  # characters: a compilation stays under a second or two
MAX_CHOICES = 1024
MAX_WARNINGS = 8
_KEPT = 64
_TRIAL_TOKENS = 4
# A small model likes to write spaces for ever; enough for pretty printing eight levels deep.
WHITESPACE = {"whitespace_pattern": "[ \\n\\r\\t]{0,40}"}


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """As llguidance counts. fuel, items, states: what building and each step may cost; size: symbols of the grammar.
    row_items: ways in which a text can be read at once (an object with n optional properties takes 4 n).
    """

    row_items: int = 10_000
    initial_fuel: int = 1_000_000
    step_fuel: int = 200_000
    step_items: int = 50_000
    lexer_states: int = 50_000
    size: int = 200_000

    def made(self) -> LLParserLimits:
        return LLParserLimits(
            max_items_in_row=self.row_items,
            initial_lexer_fuel=self.initial_fuel,
            step_lexer_fuel=self.step_fuel,
            step_max_items=self.step_items,
            max_lexer_states=self.lexer_states,
            max_grammar_size=self.size,
            verbose_errors=False,
        )


class Matcher:
    """Where one sequence stands in its grammar. Used by one thread at a time."""

    def __init__(self, native: LLMatcher) -> None:
        self.native = native

    @property
    def failed(self) -> str:
        """Why this matcher can go no further (a token it did not allow, or a grammar that became too complex)."""
        return self.native.get_error().split("\n<state>")[0]

    @property
    def is_accepting(self) -> bool:
        """Whether the text may end here."""
        return bool(self.native.is_accepting())

    @property
    def is_done(self) -> bool:
        """Whether nothing but the end can come."""
        return bool(self.native.is_stopped())

    def fill(self, row: Masks) -> None:
        """Writes the mask of the next token: int32 [words], contiguous."""
        fill_next_token_bitmask(self.native, row.reshape(1, -1), 0)

    def accept(self, token: int) -> bool:
        """Goes on by a token; False where the grammar does not allow it (`failed` says why, and it is over)."""
        return bool(self.native.consume_token(token))

    def rollback(self, count: int) -> None:
        """Takes back the last `count` accepted tokens."""
        if count and not self.native.rollback(count):
            raise ValueError(f"cannot take back {count} tokens")

    def valid_drafts(self, drafts: Sequence[int]) -> int:
        """How many of these tokens, one after the other, the grammar allows; the state stays as it is."""
        return int(self.native.validate_tokens(list(drafts)))

    def copy(self) -> Matcher:
        """A matcher that stands at the same place and goes its own way (for n > 1, and preemption)."""
        return Matcher(self.native.deep_copy())


class Grammar:
    """A compiled structure. source: the grammar as llguidance reads it; warnings: what of a schema is not enforced."""

    def __init__(self, source: str, prototype: LLMatcher) -> None:
        self.source = source
        self._prototype = prototype
        self.warnings = [str(one) for one in prototype.get_grammar_warnings()][:MAX_WARNINGS]

    def matcher(self) -> Matcher:
        """One that stands at the beginning."""
        return Matcher(self._prototype.deep_copy())


@dataclass(frozen=True, slots=True)
class MaskWanted:
    """A matcher's masks: row `row` for its next token, row + 1 + i for the one after `drafts[i]`."""

    matcher: Matcher
    row: int
    drafts: tuple[int, ...] = ()


class Grammars:
    """Compiles for one model. vocabulary_size: rows of the logits. stops: ids that may end the text.

    Raises Unsupported where llguidance cannot read the model's tokenizer. Threads may share it.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        vocabulary_size: int,
        stops: Collection[int],
        threads: int = 1,
        limits: GrammarLimits | None = None,
    ) -> None:
        if not stops:
            raise Unsupported("structured output needs a model with an end-of-sequence token")
        self.words = (vocabulary_size + 31) // 32
        self._limits = (limits or GrammarLimits()).made()
        self._tokenizer = _native_tokenizer(vocabulary, vocabulary_size, sorted(stops))
        self._executor = LLExecutor(max(threads, 1))
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def masks(self, rows: int) -> Masks:
        """Int32 [rows, words] that allow everything."""
        return np.full((rows, self.words), -1, dtype=np.int32)

    def compile(self, structure: Structure) -> Grammar:
        """Takes up to a second or two for a large schema, with the interpreter's lock released: not on the engine's
        thread. Raises InvalidInput with llguidance's words.
        """
        source = source_of(structure)
        with self._lock:
            if (kept := self._kept.get(source)) is not None:
                self._kept.move_to_end(source)
                return kept
        made = self._compiled(source)
        with self._lock:
            self._kept[source] = made
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return made

    def _compiled(self, source: str) -> Grammar:
        native = LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)
        if native.is_error():
            raise InvalidInput(f"the structure cannot be used: {_first_lines(native.get_error())}")
        grammar = Grammar(source, native)
        if failed := self._tried(grammar.matcher()):
            raise InvalidInput(f"the structure cannot be used: {_first_lines(failed)}")
        return grammar

    def _tried(self, matcher: Matcher) -> str:
        """Walks a few tokens: much is built only then, and what explodes shall do it here."""
        masks = self.masks(1)
        for _ in range(_TRIAL_TOKENS):
            matcher.fill(masks[0])
            if matcher.failed or matcher.is_done:
                break
            matcher.accept(int(np.flatnonzero(np.unpackbits(masks[0].view(np.uint8), bitorder="little"))[0]))
        return matcher.failed

    def fill(self, wanted: Sequence[MaskWanted], masks: Masks) -> None:
        """Fills the rows of all these matchers, side by side: int32 [rows, words], contiguous. The rows after a draft
        that the grammar refuses stay as they were. A matcher that fails gives a mask of nothing but the end; `failed`.
        """
        plain = [(one.matcher.native, one.row) for one in wanted if not one.drafts]
        if plain:
            fill_next_token_bitmask_par(self._executor, plain, masks)
        drafted = [(one.matcher.native, one.row, list(one.drafts)) for one in wanted if one.drafts]
        if drafted:
            fill_next_token_bitmask_par_with_draft_tokens(self._executor, drafted, masks)


def source_of(structure: Structure) -> str:
    """The structure as llguidance's grammar. Raises InvalidInput for none, for two at once, and for one too large."""
    given = [name for name in ("json_object", "json_schema", "regex", "choice", "grammar") if getattr(structure, name)]
    if len(given) != 1:
        raise InvalidInput(
            f"give exactly one of json_object, json_schema, regex, choice and grammar, not {given or 'none'}"
        )
    value = getattr(structure, given[0])
    size = sum(map(len, value)) if isinstance(value, list) else len(value) if isinstance(value, str) else 0
    if size > MAX_SOURCE:
        raise InvalidInput(f"{given[0]} has {size} characters: {MAX_SOURCE} is the most")
    return str(_SOURCES[given[0]](value))


def _of_schema(text: str) -> str:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"json_schema is not JSON: {error}") from None
    if not isinstance(schema, (dict, bool)):
        raise InvalidInput("json_schema is not an object")
    return LLMatcher.grammar_from_json_schema(text, defaults=WHITESPACE)  # type: ignore[arg-type]


def _of_choice(choice: list[str]) -> str:
    if len(choice) > MAX_CHOICES or not all(choice):
        raise InvalidInput(f"choice is 1 to {MAX_CHOICES} texts, none of them empty")
    alternatives = " | ".join(json.dumps(one, ensure_ascii=False) for one in choice)
    return LLMatcher.grammar_from_lark(f"start: {alternatives}")


_SOURCES: dict[str, Any] = {
    "json_object": lambda _: _of_schema('{"type": "object"}'),
    "json_schema": _of_schema,
    "regex": LLMatcher.grammar_from_regex,
    "choice": _of_choice,
    "grammar": LLMatcher.grammar_from_lark,
}


def _first_lines(message: str) -> str:
    return " ".join(message.split("\n<state>", maxsplit=1)[0].split())[:500]


class _ByTokenBytes:
    """For tokenizers that llguidance cannot read itself: the bytes of each token, as our own tokenizer tells them."""

    def __init__(self, vocabulary: Vocabulary, size: int, eos: int) -> None:
        self._backend = vocabulary.backend
        self.eos_token_id = eos
        self.bos_token_id = None
        self.special_token_ids = sorted(one for one in vocabulary.special_ids if one < size)
        self.tokens = [self._bytes(vocabulary, one) for one in range(size)]

    def _bytes(self, vocabulary: Vocabulary, token: int) -> bytes:
        text: str | None = self._backend.id_to_token(token)
        if text is None:
            return b""
        return text.encode() if token in vocabulary.special_ids else vocabulary.token_bytes(token)

    def __call__(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids)


def _native_tokenizer(vocabulary: Vocabulary, size: int, stops: list[int]) -> LLTokenizer:
    try:
        return LLTokenizer(vocabulary.backend.to_str(), n_vocab=size, eos_token=stops)
    except (ValueError, RuntimeError):
        pass
    from llguidance import TokenizerWrapper

    try:
        wrapper = TokenizerWrapper(_ByTokenBytes(vocabulary, size, stops[0]))
        return LLTokenizer(wrapper, n_vocab=size, eos_token=stops)
    except (ValueError, RuntimeError) as error:
        raise Unsupported(f"structured output cannot read this model's tokenizer: {_first_lines(str(error))}") from None
