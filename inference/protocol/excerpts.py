"""A request in a few words for people: the first values of its tensors, or the last words that a language model was asked."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from inference.protocol import generation
from inference.protocol.generation import Chat, Generate, Tokenize
from inference.protocol.messages import TensorHeader
from inference.protocol.values import numbers, texts

SHOWN_VALUES = 16
SHOWN_BYTES = 512


def excerpt(tensors: Sequence[TensorHeader], parts: Sequence[bytes | memoryview], most_chars: int) -> str:
    """At most `most_chars` characters; parts: the bytes of each tensor."""
    if len(tensors) == 1 and tensors[0].name == generation.REQUEST:
        try:
            return _asked_text(generation.decode_asked(memoryview(parts[0])[4:]))[-most_chars:]
        except msgspec.MsgspecError:
            return ""
    shown, at = [], 0
    for tensor, data in zip(tensors, parts, strict=True):
        shown.append(f"{tensor.name} {tensor.datatype}{tensor.shape}: {_values(tensor.datatype, data)}")
        at += len(shown[-1]) + 2
        if at >= most_chars:
            break
    return "; ".join(shown)[:most_chars]


def _asked_text(asked: generation.Asked) -> str:
    if not isinstance(asked, Generate | Tokenize):
        return f"{len(asked.tokens)} tokens"
    prompt = asked.prompt
    if isinstance(prompt, Chat):
        return "\n".join(f"{one.get('role', '')}: {_content(one.get('content'))}" for one in prompt.messages)
    return prompt if isinstance(prompt, str) else f"tokens {prompt[:SHOWN_VALUES]}"


def _content(content: object) -> str:
    if isinstance(content, list):  # parts of a message: those that are text
        return " ".join(str(part.get("text", "...")) for part in content if isinstance(part, dict))
    return str(content or "")


def _values(datatype: str, data: bytes | memoryview) -> str:
    if datatype == "BYTES":
        end = 4 + int.from_bytes(bytes(data[:4]), "little")
        return repr(texts(data[:end], 1, SHOWN_BYTES)[0][0]) if len(data) >= end else ""
    values = numbers(datatype, data, slice(0, SHOWN_VALUES), 1)
    return " ".join(f"{value:.6g}" for value in values)
