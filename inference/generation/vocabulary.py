"""What text work needs of a model's tokenizer, said as a protocol: any tokenizer that can do this will do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol


class Vocabulary(Protocol):
    """backend: the `tokenizers.Tokenizer` itself. special_ids: tokens that are marks and not text."""

    @property
    def backend(self) -> Any: ...

    @property
    def special_ids(self) -> Collection[int]: ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...

    def token_bytes(self, token: int, /) -> bytes:
        """The bytes that this token adds to a text; empty for one that adds none."""
        ...
