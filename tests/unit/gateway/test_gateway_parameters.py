import re

import pytest

from inference.errors import InvalidInput
from inference.gateway import parameters
from inference.protocol.messages import SequenceControl


def test_a_sequence_has_a_number_or_a_name():
    assert parameters.sequence({"sequence_id": 2**64 - 1, "sequence_start": True}) == SequenceControl(2**64 - 1, True)
    assert parameters.sequence({"sequence_id": "a", "sequence_start": True, "sequence_end": True}) == SequenceControl(
        "a", True, True
    )
    assert parameters.sequence({"sequence_id": 0}) is parameters.sequence({"sequence_id": ""}) is None
    assert parameters.sequence({}) is None


@pytest.mark.parametrize(
    "given",
    [{"sequence_id": True}, {"sequence_id": 1.0}, {"sequence_id": -1}, {"sequence_id": 2**64},
     {"sequence_id": "a" * 129}, {"sequence_id": "ä" * 65}, {"sequence_id": 1, "sequence_start": 1}, {"sequence_id": 1, "sequence_end": "true"},
     {"sequence_start": True}, {"sequence_id": 0, "sequence_end": True}],
    ids=str,
)  # fmt: skip
def test_a_wrong_sequence_is_refused(given):
    with pytest.raises(InvalidInput, match="sequence_"):
        parameters.sequence(given)


@pytest.mark.parametrize("value", [-1, 2**63, 1.0, True, "x", "1" * 20, "²"], ids=str)
def test_whole_numbers_are_whole(value):
    with pytest.raises(InvalidInput, match="priority"):
        parameters.whole({"priority": value}, "priority", "a whole number")
    assert parameters.whole({"priority": "7"}, "priority", "") == 7
    assert parameters.whole({}, "priority", "") == 0


def test_the_model_gets_what_the_server_does_not_know():
    given = {
        "binary_data_output": True,
        "priority": 1,
        "timeout": 2,
        "sequence_id": 1,
        "headers": "x",
        "mine": 2**64 - 1,
    }
    assert parameters.of_model(given) == {"mine": 2**64 - 1}
    with pytest.raises(InvalidInput, match=r"'triton_x'.*reserved"):
        parameters.of_model({"triton_x": 1})
    for value in (2**64, -(2**63) - 1):
        with pytest.raises(InvalidInput, match="64 bits"):
            parameters.of_model({"a": value})


def test_headers_are_forwarded_by_pattern_but_credentials_never():
    headers = {b"x-tenant": b"red", b"authorization": b"Bearer k", b"x-api-key": b"k", b"cookie": b"c", b"host": b"h"}
    assert parameters.forwarded(headers, re.compile("^X-", re.IGNORECASE)) == {"x-tenant": "red"}
    assert parameters.forwarded(headers, re.compile(".*")) == {"x-tenant": "red", "host": "h"}
