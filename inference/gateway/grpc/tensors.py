"""Tensor data between the typed lists of InferTensorContents and bytes, and InferParameter to and from Python values.

`array` does the work in C; sizes are compared before anything is made.
"""

from __future__ import annotations

from array import array
from typing import Any

from inference.errors import InvalidInput, Malformed
from inference.gateway import codec
from inference.gateway.parameters import Scalar

# datatype -> (the list that holds it, array typecode)
_LISTS: dict[str, tuple[str, str]] = {
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
    "BOOL": ("bool_contents", "B"),
    "BYTES": ("bytes_contents", ""),
}
RAW_ONLY = frozenset({"FP16", "BF16"})


def from_contents(contents: Any, datatype: str, count: int, name: str) -> bytes:
    """The bytes of `count` elements. Raises InvalidInput for another number of them, a datatype that has no list, or
    values out of range; Malformed for a list that does not belong to the datatype.
    """
    if datatype not in _LISTS:
        if datatype in RAW_ONLY:
            raise InvalidInput(f"input '{name}' is {datatype}, which has no typed contents: send raw_input_contents")
        raise InvalidInput(f"input '{name}' has the unknown datatype '{datatype}'")
    field, code = _LISTS[datatype]
    values = getattr(contents, field)
    if len(values) != count:
        other = next((found.name for found, _ in contents.ListFields() if found.name != field), "")
        if other and not values:
            raise Malformed(f"input '{name}' is {datatype}: its data belong in '{field}', not in '{other}'")
        raise InvalidInput(f"input '{name}' holds {len(values)} elements, its shape says {count}")
    if not code:
        return b"".join(map(codec.bytes_element, values))
    try:
        return array(code, values).tobytes()
    except OverflowError as error:
        raise InvalidInput(f"a value of input '{name}' is out of range for {datatype}") from error


def fill_contents(contents: Any, data: memoryview, datatype: str, name: str) -> None:
    """Puts an output's elements into their list."""
    field, code = _LISTS[datatype]
    values = getattr(contents, field)
    if code:
        cast: Any = data.cast  # its stub knows literal codes only
        values.extend(cast("?" if datatype == "BOOL" else code).tolist())
    else:
        values.extend(codec.elements(data, f"output '{name}'"))


def parameters_of(given: Any) -> dict[str, Scalar]:
    """A map of InferParameter as values. Raises InvalidInput for one that holds nothing."""
    found: dict[str, Scalar] = {}
    for name, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidInput(f"parameter '{name}' has no value")
        found[name] = getattr(parameter, choice)
    return found


def set_parameter(into: Any, name: str, value: Scalar) -> None:
    """Writes one value into a map of InferParameter."""
    slot = into[name]
    if isinstance(value, bool):
        slot.bool_param = value
    elif isinstance(value, int):
        if value < 2**63:
            slot.int64_param = value
        else:
            slot.uint64_param = value
    elif isinstance(value, float):
        slot.double_param = value
    else:
        slot.string_param = value
