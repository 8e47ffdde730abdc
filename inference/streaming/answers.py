"""Tensors and answers between Python values and binary frames. Nothing here needs numpy: it is used where it is given."""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference.errors import InvalidInput, Malformed, Rejected, ReplicaLost, SerinusError, ServerError, by_code

_CODES = {
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
    "FP16": "e", "FP32": "f", "FP64": "d", "BOOL": "?",
}  # fmt: skip
_OF_NUMPY = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip

Parameters = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An output. data: little-endian and row-major."""

    name: str
    datatype: str
    shape: list[int]
    data: memoryview

    @property
    def values(self) -> list[Any]:
        """Flat and row-major; bytes objects for BYTES. Raises InvalidInput for BF16, which Python has no word for."""
        if self.datatype == "BYTES":
            return _elements(self.data)
        code = _CODES.get(self.datatype)
        if code is None:
            raise InvalidInput(f"{self.datatype} has no Python values: take `data`")
        return [value for (value,) in struct.iter_unpack(f"<{code}", self.data)]

    def numpy(self) -> Any:
        """As a numpy array of its shape. Raises ImportError without numpy."""
        import numpy as np  # type: ignore[import-untyped,unused-ignore]

        if self.datatype == "BYTES":
            return np.array(_elements(self.data), dtype=object).reshape(self.shape)
        for name, datatype in _OF_NUMPY.items():
            if datatype == self.datatype:
                return np.frombuffer(self.data, dtype=name).reshape(self.shape)
        raise InvalidInput(f"{self.datatype} has no numpy type: take `data`")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered. is_last: of a stream, no more will come; it may have no outputs then."""

    outputs: list[Tensor]
    model: str
    version: str
    arm: str
    is_last: bool

    def __getitem__(self, name: str) -> Tensor:
        """The output `name`. Raises KeyError."""
        for output in self.outputs:
            if output.name == name:
                return output
        raise KeyError(name)


def _elements(data: memoryview) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        found.append(bytes(data[at + 4 : at + 4 + size]))
        at += 4 + size
    return found


def _packed(name: str, datatype: str, data: Any) -> bytes | memoryview:
    if isinstance(data, bytes | bytearray | memoryview):
        return memoryview(data).cast("B")
    if datatype == "BYTES":
        items = [item.encode() if isinstance(item, str) else bytes(item) for item in data]
        return b"".join(len(item).to_bytes(4, "little") + item for item in items)
    code = _CODES.get(datatype)
    if code is None:
        raise InvalidInput(f"input '{name}': {datatype} is given as bytes")
    try:
        if code in "e?":
            return struct.pack(f"<{len(data)}{code}", *data)
        return array(code, data).tobytes()
    except (TypeError, ValueError, OverflowError, struct.error) as error:
        raise InvalidInput(f"input '{name}' does not fit {datatype}: {error}") from error


def _parts(name: str, given: Any) -> tuple[str, list[int], bytes | memoryview]:
    if isinstance(given, tuple) and len(given) == 3:
        datatype, shape, data = given
        return str(datatype), [int(size) for size in shape], _packed(name, datatype, data)
    if not all(hasattr(given, wanted) for wanted in ("dtype", "shape", "tobytes")):
        raise InvalidInput(f"input '{name}' is neither an array nor (datatype, shape, data)")
    shape = [int(size) for size in given.shape]
    kind = str(given.dtype)
    if kind == "object" or kind.startswith(("<U", "|S", "<S")):
        return "BYTES", shape, _packed(name, "BYTES", given.ravel().tolist())
    datatype = _OF_NUMPY.get(kind)
    if datatype is None:
        raise InvalidInput(f"input '{name}' is of type {kind}, which no tensor has")
    return datatype, shape, given.tobytes()


def request(head: dict[str, Any], inputs: Mapping[str, Any]) -> bytes:
    """The binary frame of an infer request. Raises InvalidInput."""
    tensors: list[dict[str, Any]] = []
    parts: list[bytes | memoryview] = []
    for name, given in inputs.items():
        datatype, shape, data = _parts(name, given)
        size = {"binary_data_size": len(data)}
        tensors.append({"name": name, "datatype": datatype, "shape": shape, "parameters": size})
        parts.append(data)
    text = json.dumps({**head, "inputs": tensors}, separators=(",", ":")).encode()
    return b"".join([len(text).to_bytes(4, "little"), text, *parts])


def parse(message: str | bytes) -> tuple[dict[str, Any], memoryview]:
    """A frame from the server: its JSON and the bytes after it. Raises Malformed."""
    try:
        size = 0 if isinstance(message, str) else int.from_bytes(message[:4], "little")
        found = json.loads(message if isinstance(message, str) else message[4 : 4 + size])
    except (ValueError, RecursionError) as error:
        raise Malformed("the server sent a frame that cannot be read") from error
    if not isinstance(found, dict):
        raise Malformed("the server sent a frame that is no object")
    return found, memoryview(b"") if isinstance(message, str) else memoryview(message)[4 + size :]


def answer(frame: dict[str, Any], rest: memoryview) -> Answer:
    """The answer in a binary frame's parts. Raises Malformed."""
    outputs: list[Tensor] = []
    at = 0
    try:
        for output in frame["outputs"]:
            name, datatype, size = (
                output["name"],
                output["datatype"],
                output.get("parameters", {}).get("binary_data_size"),
            )
            if size is None:  # the program asked for JSON
                data = memoryview(_packed(name, datatype, output["data"]))
            else:
                data, at = rest[at : at + size], at + size
            outputs.append(Tensor(name, datatype, output["shape"], data))
        arm = frame.get("parameters", {}).get("rollout_arm", "")
        return Answer(outputs, frame["model_name"], frame["model_version"], arm, frame.get("final", True))
    except (KeyError, TypeError, AttributeError, InvalidInput) as error:
        raise Malformed("the server sent an answer that cannot be read") from error


def error(frame: dict[str, Any]) -> SerinusError:
    """The error that a frame stands for."""
    cls = by_code(frame.get("code", "internal"))
    message = str(frame.get("error", ""))
    if issubclass(cls, Rejected):
        return ServerError(message)
    if issubclass(cls, ReplicaLost):
        return cls(message, retry_after_s=frame.get("retry_after_s"), last_token=frame.get("last_token"))
    return cls(message, retry_after_s=frame.get("retry_after_s"))
