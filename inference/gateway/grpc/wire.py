"""Protobuf messages of the door, and the two that hold tensors by their bytes.

protobuf copies a bytes field when it parses and once more when it is read. So of a large request the raw tensors are
cut out where they lie and protobuf reads the rest; and an answer is the few fields before its tensors, then these.
Source: protobuf's encoding (tag = number << 3 | wire type, varints of 7 bits, lengths before bytes).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from google.protobuf.message import DecodeError

from inference.errors import Malformed
from inference.protocol.proto import message, pool_of

Message = Any  # a class out of a private pool has no name for a type checker
Raw = Sequence[bytes | memoryview]

FILES = ("model_config", "grpc_service")
LARGE_BYTES = 64 << 10
MAX_FIELDS = 4096  # of a large request: each takes a step of Python here, and memory in protobuf
_BYTES, _FIXED64, _VARINT, _FIXED32 = 2, 1, 0, 5
_RAW_OUTPUT, _STREAMED = 6, 2
RAW_INPUT_TAG = 7 << 3 | _BYTES


def pool() -> Any:
    """The pool of package `inference`, which is nobody else's."""
    return pool_of(*FILES)


def kind(name: str) -> Message:
    """The class of a message of package `inference`."""
    return message(f"inference.{name}", *FILES)


INFER_REQUEST = kind("ModelInferRequest")
INFER_RESPONSE = kind("ModelInferResponse")
STREAM_RESPONSE = kind("ModelStreamInferResponse")


def parse(what: Message, data: bytes) -> Message:
    """Raises Malformed for bytes that are no such message."""
    try:
        return what.FromString(data)
    except (DecodeError, UnicodeError, RecursionError) as error:
        raise Malformed(f"the request is no {what.DESCRIPTOR.name} message") from error


def infer_request(data: bytes) -> tuple[Message, Raw]:
    """A ModelInferRequest and its raw tensors, which of a large one are views of `data`. Raises Malformed."""
    if len(data) > LARGE_BYTES:
        cut = _cut(data)
        if cut is not None:
            return parse(INFER_REQUEST, cut[0]), cut[1]
    found = parse(INFER_REQUEST, data)
    return found, found.raw_input_contents


def _cut(data: bytes) -> tuple[bytes, list[memoryview]] | None:
    """(the message without its raw tensors, these); None for what protobuf shall judge as a whole. Raises Malformed."""
    view, at, end, fields = memoryview(data), 0, len(data), 0
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    while at < end:
        start = at
        fields += 1
        if fields > MAX_FIELDS:
            raise too_many_fields()
        tag, at = varint(data, at)
        how = tag & 7
        if how == _BYTES:
            size, at = varint(data, at)
            begin, at = at, at + size
        elif how == _VARINT:
            begin, at = at, varint(data, at)[1]
        elif how in (_FIXED64, _FIXED32):
            begin, at = at, at + (8 if how == _FIXED64 else 4)
        else:
            return None
        if tag < 0 or not begin <= at <= end:
            return None
        if tag == RAW_INPUT_TAG:
            raw.append(view[begin:at])
        else:
            rest.append(view[start:at])
    return b"".join(rest), raw


def too_many_fields() -> Malformed:
    """What a large request of more than MAX_FIELDS is refused with."""
    return Malformed(f"a request of this size has at most {MAX_FIELDS} fields: send tensors as raw_input_contents")


def varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, where it ends) of the number that begins at `at`; (-1, an end past the data) where there is none."""
    value = shift = 0
    for index in range(at, min(at + 10, len(data))):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    return -1, len(data) + 1


# -- answers -----------------------------------------------------------------------------------------------------------


def _number(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _lead(number: int, size: int) -> bytes:
    return bytes((number << 3 | _BYTES,)) + _number(size)


@lru_cache(maxsize=4096)
def model_fields(name: str, version: str) -> bytes:
    """The first two fields of a ModelInferResponse."""
    found: bytes = INFER_RESPONSE(model_name=name, model_version=version).SerializeToString()
    return found


@lru_cache(maxsize=4096)
def output_field(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """One element of `outputs` whose data are raw."""
    answer = INFER_RESPONSE()
    answer.outputs.add(name=name, datatype=datatype, shape=shape)
    found: bytes = answer.SerializeToString()
    return found


def id_field(identity: str) -> bytes:
    data = identity.encode()
    return _lead(3, len(data)) + data if data else b""


def raw_fields(parts: Sequence[memoryview]) -> list[bytes | memoryview]:
    """The elements of `raw_output_contents`."""
    found: list[bytes | memoryview] = []
    for part in parts:
        found += (_lead(_RAW_OUTPUT, len(part)), part)
    return found


def streamed(parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """A ModelStreamInferResponse around the parts of a ModelInferResponse, in pieces too."""
    return [_lead(_STREAMED, sum(len(part) for part in parts)), *parts]
