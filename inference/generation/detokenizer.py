"""Token ids -> text, as they come: what was sent is never taken back.

The law: all that is given out, put together, is the tokenizer's own decoding of all ids (cut before the stop string),
however they were split. A character whose bytes are not all there waits; what may be the beginning of a stop string
waits. Characters that the end of the answer left unfinished are not given out.

A byte-level vocabulary is decoded byte by byte, O(1) per token. Any other is decoded over a small window of the last
tokens, as Text Generation Inference and vLLM do, since a token's text depends on its neighbour (a leading space).
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection, Sequence
from typing import Protocol

from inference.errors import InvalidInput
from inference.generation.vocabulary import Vocabulary
from inference.models.language_tokenizer import byte_alphabet

MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
BROKEN = "\N{REPLACEMENT CHARACTER}"
_PROMPT_WINDOW = 6  # tokens of the prompt that the first new one may lean on
_LONGEST_WAIT = 16  # tokens: no character is longer, so what still looks broken is broken


class Decoding(Protocol):
    """One sequence's decoding; `push` gives the characters that are complete."""

    def push(self, token: int) -> str: ...


_BYTE_OF = byte_alphabet()


def byte_level_bytes(token: str) -> bytes:
    """A byte-level token's bytes; one with a character outside the alphabet (an added token) is text as it stands."""
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return token.encode("utf-8")


def is_byte_level(vocabulary: Vocabulary) -> bool:
    """Whether decoding is putting bytes together, and no more."""
    decoder = json.loads(vocabulary.backend.to_str()).get("decoder") or {}
    parts = decoder.get("decoders", [decoder])
    return [part.get("type") for part in parts] == ["ByteLevel"]


class Decoders:
    """Makes decodings for one vocabulary; keeps each token's bytes once they were asked for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.special_ids = frozenset(vocabulary.special_ids)
        self.byte_level = is_byte_level(vocabulary)
        self._bytes: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        held = self._bytes.get(token)
        if held is None:
            held = self._bytes[token] = byte_level_bytes(self.vocabulary.backend.id_to_token(token) or "")
        return held

    def decoding(self, prompt_ids: Sequence[int] = ()) -> Decoding:
        return _ByteDecoding(self) if self.byte_level else _WindowDecoding(self.vocabulary, prompt_ids)


class _ByteDecoding:
    def __init__(self, decoders: Decoders) -> None:
        self._bytes_of = decoders.bytes_of
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token: int) -> str:
        return self._decode(self._bytes_of(token))


class _WindowDecoding:
    """`_ids[:_read]` is given out; the text of the new ones is what the window has more with them than without."""

    def __init__(self, vocabulary: Vocabulary, prompt_ids: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._ids = list(prompt_ids[-_PROMPT_WINDOW:])
        self._read = len(self._ids)
        self._known = self._text(self._ids)

    def _text(self, ids: list[int]) -> str:
        return self._vocabulary.decode(ids, skip_special_tokens=False)

    def push(self, token: int) -> str:
        self._ids.append(token)
        text = self._text(self._ids)
        waited = len(self._ids) - self._read
        if waited < _LONGEST_WAIT and (text.endswith(BROKEN) or len(text) <= len(self._known)):
            return ""
        new = text[len(self._known) :]
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        self._known = self._text(self._ids)
        return new


class StopSearch:
    """Finds the stop string that is complete first (of two that end together, the longer).

    Raises InvalidInput for too many of them, too long ones, and an empty one.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        if len(stops) > MAX_STOPS:
            raise InvalidInput(f"{len(stops)} stop strings are too many: {MAX_STOPS} is the most")
        if any(not 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
            raise InvalidInput(f"a stop string has 1 to {MAX_STOP_CHARACTERS} characters")
        self._stops = list(stops)
        self._include = include_stop
        self._beginnings = frozenset(stop[:size] for stop in stops for size in range(1, len(stop)))
        self._firsts = frozenset(stop[0] for stop in stops)
        self._longest = max((len(stop) for stop in stops), default=0)
        self._held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        """What can be sent of all that came; nothing more once it stopped."""
        if not self._stops:
            return text
        if self.stopped is not None or not text:
            return ""
        text, self._held = self._held + text, ""
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            end, start, self.stopped = min(found)
            return text[: end if self._include else start]
        keep = self._waiting(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _waiting(self, text: str) -> int:
        """How many characters at the end may become a stop string."""
        for size in range(min(len(text), self._longest - 1), 0, -1):
            if text[-size] in self._firsts and text[-size:] in self._beginnings:
                return size
        return 0

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


class Detokenizer:
    """One choice's ids -> the text that is safe to send.

    prompt_ids: with them the text is what the prompt is continued by; without, what the ids are by themselves.
    keep_ids: special tokens that stay in the text all the same (the marks of tool calls). min_tokens: no stop string
    is looked for before so many. Ids of end-of-sequence tokens are not to be pushed unless they shall be text.
    Raises InvalidInput for stop strings out of bounds.
    """

    def __init__(
        self,
        decoders: Decoders,
        stops: Sequence[str] = (),
        *,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        keep_ids: Collection[int] = (),
        min_tokens: int = 0,
        prompt_ids: Sequence[int] = (),
    ) -> None:
        self._skipped = decoders.special_ids.difference(keep_ids) if skip_special_tokens else frozenset[int]()
        self._search = StopSearch(stops, include_stop=include_stop)
        self._decoding = decoders.decoding([one for one in prompt_ids[-64:] if one not in self._skipped])
        self._before_stops = max(min_tokens, 0)
        self.used = 0

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text."""
        return self._search.stopped

    def push(self, token_ids: Sequence[int]) -> str:
        """The new text. `used` is then how many of these tokens it took until the stop string was complete."""
        parts: list[str] = []
        self.used = 0
        for token in token_ids:
            if self.stopped is not None:
                break
            self.used += 1
            self._before_stops -= 1
            if token in self._skipped:
                continue
            text = self._decoding.push(token)
            parts.append(self._search.push(text) if self._before_stops < 0 else text)
        return "".join(parts)

    def finish(self) -> str:
        """The rest that was held back for a stop string that did not come. An unfinished character is left out."""
        return self._search.finish()
