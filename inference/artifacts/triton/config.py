"""config.pbtxt: protobuf text of one ModelConfig, bounded; and its JSON form as Python models are given it."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf import json_format, text_format

from inference.errors import Rejected
from inference.protocol.proto import message

NAME = "config.pbtxt"
MAX_BYTES = 1 << 20
REMEDY = "See docs/triton.md for what is read; the file is protobuf text of the message ModelConfig."
ModelConfig = Any  # a class out of a private pool has no name for a type checker


def read(text: str | bytes) -> ModelConfig:
    """The message. Raises Rejected with line and column for what is no such text, an unknown field included."""
    if len(text) > MAX_BYTES:
        raise Rejected(f"{NAME} is larger than {MAX_BYTES} bytes", remedy=REMEDY)
    try:
        words = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise Rejected(f"{NAME} is no UTF-8 text", remedy=REMEDY) from error
    found = message("inference.ModelConfig")()
    try:
        text_format.Parse(words, found)
    except (text_format.ParseError, ValueError, RecursionError) as error:
        raise Rejected(f"{NAME}: {str(error)[:300]}", remedy=REMEDY) from error
    return found


def text_of(words: str) -> str:
    """config.pbtxt for a configuration given as JSON, as a load's override is: camelCase or not, whole numbers as texts
    too. Raises Rejected naming what is wrong, an unknown field included.
    """
    found = empty()
    try:
        json_format.Parse(words, found)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        why = str(error).partition("\n")[0]  # a list of all fields comes after it
        raise Rejected(f"'config' is no JSON of a ModelConfig: {why[:300]}", remedy=REMEDY) from error
    return str(text_format.MessageToString(found))


def empty() -> ModelConfig:
    """What a model without a config.pbtxt has."""
    return message("inference.ModelConfig")()


def as_json(config: ModelConfig) -> str:
    """As Triton hands it to Python models: every field is there, numbers are numbers and enums are their names."""
    return json.dumps(_plain(config))


def _plain(found: Any) -> dict[str, Any]:
    shown: dict[str, Any] = json_format.MessageToDict(
        found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _numbers(shown, found.DESCRIPTOR)


def _numbers(shown: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Protobuf writes 64-bit integers as strings; who reads a config wants numbers."""
    for field in kind.fields:
        value = shown.get(field.name)
        if value is None:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            inner = field.message_type.fields_by_name["value"].message_type
            if inner is not None:
                shown[field.name] = {key: _numbers(one, inner) for key, one in value.items()}
        elif field.message_type is not None:
            many = isinstance(value, list)
            done = [_numbers(one, field.message_type) for one in (value if many else [value])]
            shown[field.name] = done if many else done[0]
        elif field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
            shown[field.name] = [int(one) for one in value] if isinstance(value, list) else int(value)
    return shown
