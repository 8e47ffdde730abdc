import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import ClientError, InvalidInput, Malformed
from inference.gateway import generate
from inference.protocol.messages import SequenceControl
from inference.protocol.oip import Signature, TensorSpec


def signature(*inputs, batch=0):
    return Signature([TensorSpec(*one) for one in inputs], [TensorSpec("y", "FP32", [1])], max_batch_size=batch)


LLM = signature(("text_input", "BYTES", [-1, 1]), ("stream", "BOOL", [-1, 1]), batch=8)


def read(body, found=LLM):
    return generate.read(body if isinstance(body, bytes) else msgspec.json.encode(body), "m", found)


def test_keys_are_inputs_by_name_and_parameters_otherwise():
    call = read({
        "id": "7", "text_input": "hé", "max_tokens": 5, "parameters": {"stream": False, "temperature": 0.5},
    })  # fmt: skip
    assert call.id == "7"
    assert [(one.name, one.shape) for one in call.tensors] == [("text_input", [1, 1]), ("stream", [1, 1])]
    assert [bytes(part) for part in call.body] == [b"\x03\0\0\0h\xc3\xa9", b"\0"]
    assert call.parameters == {"max_tokens": 5, "temperature": 0.5}


def test_parameters_of_the_server_mean_the_same_here():
    call = read(
        {"text_input": "a", "stream": True, "parameters": {"sequence_id": 4, "sequence_end": True, "timeout": 9}}
    )
    assert call.sequence == SequenceControl(4, False, True)
    assert (call.timeout_us, call.parameters) == (9, {})


@pytest.mark.parametrize(
    ("shape", "batch", "value", "wanted"),
    [
        ([1], 0, 5, [1]),
        ([-1], 0, [1, 2, 3], [3]),
        ([-1, 2], 0, [1, 2, 3, 4], [2, 2]),
        ([-1, -1], 0, [1, 2, 3], [1, 3]),
        ([-1, 3], 4, [[1, 2, 3]], [1, 3]),
        ([-1, -1], 4, [1, 2, 3], [1, 3]),
        ([-1, 1], 4, [1, 2, 3], [3, 1]),
        ([-1], 4, 1, [1]),
        ([2, 2], 0, [[1, 2], [3, 4]], [2, 2]),
    ],
    ids=str,
)
def test_values_take_the_signatures_shape(shape, batch, value, wanted):
    call = read({"x": value}, signature(("x", "INT32", shape), batch=batch))
    assert call.tensors[0].shape == wanted
    flat = value if isinstance(value, list) else [value]
    flat = [one for row in flat for one in (row if isinstance(row, list) else [row])]
    assert bytes(call.body[0]) == struct.pack(f"<{len(flat)}i", *flat)


@pytest.mark.parametrize("value", [[1, 2], [], "a", [1, [2, 3]], 2**40, None, {}, [None]], ids=str)
def test_what_does_not_fit_is_a_typed_error(value):
    with pytest.raises(ClientError):
        read({"x": value}, signature(("x", "INT32", [3])))


@pytest.mark.parametrize("body", [b"", b"[]", b"1", b"{", b"\xff", b'{"a":' * 3000], ids=range(6))
def test_what_is_no_object_is_malformed(body):
    with pytest.raises(Malformed):
        read(body)


def test_a_parameter_is_no_list_and_an_id_a_text():
    with pytest.raises(InvalidInput, match="'nope' is no input"):
        read({"text_input": "a", "stream": True, "nope": [1]})
    with pytest.raises(InvalidInput, match="'id'"):
        read({"text_input": "a", "stream": True, "id": 5})
    with pytest.raises(Malformed, match="'parameters'"):
        read({"text_input": "a", "stream": True, "parameters": 5})
    with pytest.raises(InvalidInput, match="at most 64"):
        read({"text_input": "a", "stream": True} | {f"p{index}": 1 for index in range(65)})


def test_an_input_may_be_named_as_anything():
    call = read({"id": 5, "parameters": [1, 2]}, signature(("id", "INT8", [1]), ("parameters", "INT8", [2])))
    assert call.id == ""
    assert [bytes(part) for part in call.body] == [b"\x05", b"\x01\x02"]


def test_far_too_many_elements_are_refused_before_they_are_read():
    with pytest.raises(InvalidInput, match="more elements"):
        read(b'{"x":[' + b"1," * 200_000 + b"1]}", signature(("x", "INT8", [2])))


json = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(), s, max_size=3), max_leaves=8)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["text_input", "stream", "id", "parameters", "other"]), json))
def test_any_json_is_a_call_or_a_typed_error(body):
    try:
        call = read(msgspec.json.encode(body))
    except ClientError:
        return
    assert [one.name for one in call.tensors] == ["text_input", "stream"]
