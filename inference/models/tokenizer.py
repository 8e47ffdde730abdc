"""Text -> token ids by the model's own `tokenizer.json`, one by one or in a padded batch.

A tokenizer's regular expression can panic on some text; that arrives here as a BaseException of native code and leaves
as InvalidInput. Text is cut to a length that cannot matter before anything looks at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from inference.errors import ContextExceeded, InvalidInput, Rejected
from inference.protocol import token_ids

CHARACTERS_PER_TOKEN = 64  # no vocabulary in use comes near it; what lies beyond would be truncated anyway
Ids = np.ndarray[Any, np.dtype[np.int64]]


class BatchTokenizer:
    """Truncates to `max_tokens`; pads on the right."""

    def __init__(self, path: Path, *, max_tokens: int, pad_id: int | None) -> None:
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
            held = self._tokenizer.padding or {}
            known = pad_id if pad_id is not None else 0
            self.pad_id = int(held.get("pad_id", known))
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(max_tokens)
            self._vocabulary = int(self._tokenizer.get_vocab_size())
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            remedy = (
                "save the tokenizer again: AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(folder)"
            )
            raise Rejected("tokenizer.json cannot be read", remedy=remedy, check="load") from error
        self._max_tokens = max_tokens
        self._max_characters = max_tokens * CHARACTERS_PER_TOKEN

    def ids(self, texts: Sequence[bytes]) -> list[Ids]:
        """Each text's token ids, int64 [its own length]; an element of protocol.token_ids is taken as it is.

        Raises InvalidInput for text that is no UTF-8, or panics, and for ids that the model does not have or take.
        """
        given = [token_ids.unpacked(bytes(text)) for text in texts]
        if any(one is not None for one in given):
            read = iter(self._read([text for text, one in zip(texts, given, strict=True) if one is None]))
            return [next(read) if one is None else self._checked(one) for one in given]
        return self._read(texts)

    def _checked(self, ids: list[int]) -> Ids:
        if len(ids) > self._max_tokens:
            raise ContextExceeded(
                f"This model's maximum context length is {self._max_tokens} tokens. However, the input has {len(ids)}."
            )
        wrong = next((one for one in ids if not 0 <= one < self._vocabulary), None)
        if wrong is not None or not ids:
            told = "an input without tokens" if wrong is None else f"the token id {wrong}"
            raise InvalidInput(f"the model cannot take {told}: its token ids are 0 to {self._vocabulary - 1}")
        return np.array(ids, dtype=np.int64)

    def _read(self, texts: Sequence[bytes]) -> list[Ids]:
        try:
            strings = [bytes(text).decode("utf-8")[: self._max_characters] for text in texts]
            encoded = self._tokenizer.encode_batch_fast(strings)
        except UnicodeDecodeError:
            raise InvalidInput("the text is not valid UTF-8") from None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise InvalidInput("the model's tokenizer cannot read this text") from error
        return [np.array(one.ids, dtype=np.int64) for one in encoded]

    def padded(self, ids: Sequence[Ids], length: int = 0) -> tuple[Ids, Ids]:
        """(input_ids, attention_mask), int64 [n, longest], or [n, length] where that is more."""
        longest = max([length, *(one.size for one in ids)])
        together = np.full((len(ids), longest), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(ids), longest), dtype=np.int64)
        for row, one in enumerate(ids):
            together[row, : one.size] = one
            mask[row, : one.size] = 1
        return together, mask

    def encode(self, texts: Sequence[bytes]) -> tuple[Ids, Ids]:
        """`padded` of `ids`."""
        return self.padded(self.ids(texts))
