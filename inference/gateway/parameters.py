"""What an infer request's `parameters` mean to the server; all others go to the model as they are."""

from __future__ import annotations

import re

from inference.errors import InvalidInput
from inference.protocol.messages import SequenceControl

# Whoever serves a model must not learn its callers' credentials.
_SECRET = frozenset({b"authorization", b"proxy-authorization", b"cookie", b"x-api-key"})
Scalar = str | int | float | bool
MAX_SEQUENCE_ID_BYTES = 128  # of UTF-8, as Triton counts them
RESERVED = "triton_"
OWN = frozenset({
    "binary_data_output", "headers", "priority", "sequence_end", "sequence_id", "sequence_start", "timeout",
})  # fmt: skip


def whole(given: dict[str, Scalar], name: str, what: str) -> int:
    """A whole number of 63 bits, also where it comes as text; 0 where it does not come. Raises InvalidInput."""
    value = given.get(name, 0)
    if type(value) is str and value.isascii() and value.isdigit() and len(value) <= 19:
        value = int(value)
    if type(value) is not int or not 0 <= value < 2**63:
        raise InvalidInput(f"parameter '{name}' must be {what}")
    return value


def sequence(given: dict[str, Scalar]) -> SequenceControl | None:
    """The sequence that a request belongs to, None for none (an id of 0 or ""). Raises InvalidInput."""
    identity = given.get("sequence_id", 0)
    if type(identity) not in {int, str} or (type(identity) is int and not 0 <= identity < 2**64):
        raise InvalidInput("parameter 'sequence_id' must be a whole number of 64 bits or a text")
    if type(identity) is str and len(identity.encode("utf-8", "surrogatepass")) > MAX_SEQUENCE_ID_BYTES:
        raise InvalidInput(f"parameter 'sequence_id' is longer than {MAX_SEQUENCE_ID_BYTES} bytes")
    start, end = (switch(given, name) for name in ("sequence_start", "sequence_end"))
    if identity:
        assert isinstance(identity, int | str)
        return SequenceControl(identity, start, end)
    if start or end:
        raise InvalidInput("'sequence_start' and 'sequence_end' need a non-zero or non-empty 'sequence_id' beside them")
    return None


def switch(given: dict[str, Scalar], name: str, default: bool = False) -> bool:
    """Whether a parameter is on. Raises InvalidInput for what is neither true nor false."""
    value = given.get(name, default)
    if type(value) is not bool:
        raise InvalidInput(f"parameter '{name}' must be true or false")
    return value


def of_model(given: dict[str, Scalar]) -> dict[str, Scalar]:
    """The parameters that the model gets. Raises InvalidInput for reserved names and for numbers beyond 64 bits."""
    found: dict[str, Scalar] = {}
    for name, value in given.items():
        if name in OWN or (name == "timeline" and value is True):
            continue
        if name.startswith(RESERVED):
            raise InvalidInput(
                f"parameter '{name}': parameter keys starting with '{RESERVED}' are reserved and should not be specified"
            )
        if type(value) is int and not -(2**63) <= value < 2**64:
            raise InvalidInput(f"parameter '{name}' does not fit 64 bits")
        found[name] = value
    return found


def forwarded(headers: dict[bytes, bytes], pattern: re.Pattern[str]) -> dict[str, Scalar]:
    """The headers, in small letters, whose names the operator's pattern finds, but never credentials."""
    found = {name: value for name, value in headers.items() if name not in _SECRET}
    names = {name: name.decode("latin-1") for name in found}
    return {names[name]: value.decode("latin-1") for name, value in found.items() if pattern.search(names[name])}
