import random
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import ClientError, InvalidInput, Malformed, Unsupported
from inference.gateway import answers, calls, codec
from inference.gateway.shared_memory import Regions
from inference.protocol.messages import TensorHeader
from inference.protocol.oip import DATATYPES, Signature, TensorSpec

EMPTY = memoryview(b"")
SIGNATURE = Signature(
    inputs=[TensorSpec("x", "FP32", [-1, 3])], outputs=[TensorSpec("y", "FP32", [-1, 2])], max_batch_size=4
)
PAIR = Signature(
    inputs=[TensorSpec("a", "INT64", [2]), TensorSpec("b", "BYTES", [-1])], outputs=[TensorSpec("y", "FP16", [2])]
)
FORMATS = {
    "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q",
    "FP32": "f", "FP64": "d",
}  # fmt: skip


def raw(value):
    return msgspec.Raw(msgspec.json.encode(value))


def read(body, rest=b"", signature=SIGNATURE, **more):
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return calls.read(calls.parse(data), memoryview(rest), "m", signature, **more)


def x(data=None, shape=None, datatype="FP32", **more):
    return {"name": "x", "shape": shape or [1, 3], "datatype": datatype, "data": data or [1, 2, 3], **more}


@pytest.mark.parametrize("datatype", FORMATS)
def test_numbers_become_the_bytes_that_struct_packs(datatype):
    values = [0, 1, 2, 100]
    packed = codec.from_json(raw(values), datatype, 4, "x")
    assert packed == struct.pack(f"<4{FORMATS[datatype]}", *values)
    assert codec.to_json(memoryview(packed), datatype, "y") == values


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_int64_survives_both_ways(values):
    packed = codec.from_json(raw(values), "INT64", len(values), "x")
    assert codec.to_json(memoryview(packed), "INT64", "y") == values


@given(st.lists(st.text(), max_size=10))
def test_texts_survive_both_ways(values):
    packed = codec.from_json(raw(values), "BYTES", len(values), "x")
    codec.check_binary(packed, "BYTES", len(values), "x")
    assert codec.to_json(memoryview(packed), "BYTES", "y") == values


def test_booleans_are_one_byte_each():
    assert codec.from_json(raw([True, False]), "BOOL", 2, "x") == b"\x01\x00"
    assert codec.to_json(memoryview(b"\x01\x00"), "BOOL", "y") == [True, False]


def test_nested_data_is_read_row_major():
    nested = [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert codec.from_json(raw(nested), "INT8", 8, "x") == bytes(range(1, 9))


@pytest.mark.parametrize(
    ("datatype", "value"), [("UINT8", 256), ("INT8", -129), ("UINT64", -1), ("UINT64", 2**64), ("INT64", 2**63)]
)
def test_a_value_out_of_range_is_refused(datatype, value):
    with pytest.raises(InvalidInput, match="out of range"):
        codec.from_json(raw([value]), datatype, 1, "x")


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_are_refused_in_json(datatype):
    with pytest.raises(
        InvalidInput, match=f"receiving {datatype} data via JSON is not supported. Please use the binary data format"
    ):
        codec.from_json(raw([1.0]), datatype, 1, "x")
    with pytest.raises(
        InvalidInput, match=f"sending {datatype} data via JSON is not supported. Please use the binary data format"
    ):
        codec.to_json(memoryview(b"\0\0"), datatype, "y")


@pytest.mark.parametrize(
    "data", [b"[null]", b"[NaN]", b"[1e999]", b'["1"]', b"[true]", b"{}", b"1", b"[[1],2]", b"[1", b""]
)
def test_what_is_no_array_of_numbers_is_malformed(data):
    with pytest.raises(ClientError):
        codec.from_json(msgspec.Raw(data), "FP32", 1, "x")


def test_infinity_and_nan_are_null_in_json_output():
    values = codec.to_json(memoryview(struct.pack("<3f", float("nan"), float("inf"), 1)), "FP32", "y")
    assert msgspec.json.encode(values) == b"[null,null,1.0]"


@pytest.mark.parametrize("depth", [17, 100, 101, 10_000])
def test_deep_nesting_is_refused(depth):
    body = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","data":' + b"[" * depth + b"]" * depth + b"}]}"
    with pytest.raises(Malformed, match="nested"):
        read(body)


@pytest.mark.parametrize("shape", [[-1], [2**63], [2**40, 2**40], [1] * 17])
def test_absurd_shapes_are_refused_before_anything_is_allocated(shape):
    with pytest.raises(InvalidInput):
        codec.element_count(shape, "x")


def test_sixteen_dimensions_are_allowed():
    assert codec.element_count([2] * 16, "x") == 65536


@pytest.mark.parametrize("off", [-1, 1])
def test_binary_data_must_be_exact(off):
    with pytest.raises(InvalidInput, match="bytes of binary data"):
        codec.check_binary(bytes(12 + off), "FP32", 3, "x")


@pytest.mark.parametrize("data", [b"\1", b"\1\0\0\0", b"\xff\xff\xff\xffabc", b"\0\0\0\0" * 2])
def test_broken_bytes_elements_are_refused(data):
    with pytest.raises(InvalidInput):
        codec.check_binary(data, "BYTES", 1, "x")


def test_a_bool_is_zero_or_one():
    codec.check_binary(b"\0\1\0", "BOOL", 3, "x")
    with pytest.raises(InvalidInput, match="BOOL"):
        codec.check_binary(b"\0\2\0", "BOOL", 3, "x")


def test_a_call_holds_headers_bytes_and_parameters():
    call = read({"id": "7", "inputs": [x()], "parameters": {"timeout": 5000, "priority": 1}})
    assert (call.id, call.timeout_us, call.priority, call.parameters) == ("7", 5000, 1, {})
    assert call.tensors == [TensorHeader("x", "FP32", [1, 3], 12)]
    assert call.body == [struct.pack("<3f", 1, 2, 3)]


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([x() | {"name": "z"}], "unexpected inference input 'z' for model 'm'"),
        ([x(), x()], "input 'x' already exists in request"),
        ([], r"^expected 1 inputs but got 0 inputs for model 'm'. Got input\(s\) \[\], but missing .* \['x'\]. Please"),
        ([x([1, 2], [1, 2])], r"^unexpected shape for input 'x' for model 'm'. Expected \[-1,3\], got \[1,2\]$"),
        ([x([1, 2, 3], [3])], r"Expected \[-1,3\], got \[3\]. The first dimension is the batch, from 1 to 4"),
        ([x([1.0] * 15, [5, 3])], "inference request batch-size must be <= 4 for 'm'"),
        ([x([1, 2, 3], datatype="INT32")], "data-type is 'INT32', but model 'm' expects 'FP32'"),
        ([x([1, 2])], "holds 2 elements, its shape says 3"),
        ([{"name": "x", "shape": [0, 3], "datatype": "FP32", "data": []}], "batch-size must be >= 1"),
        ([{"name": "x", "shape": [1, 3], "datatype": "FP32"}], "neither 'data' nor"),
        ([x() | {"datatype": "COMPLEX"}], "unknown datatype"),
        ([x()] * 65, "length <= 64"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_in_words(inputs, text):
    with pytest.raises(ClientError, match=text):
        read({"inputs": inputs})


def test_inputs_come_in_the_order_of_the_signature():
    inputs = [
        {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["hi"]},
        {"name": "a", "shape": [2], "datatype": "INT64", "data": [1, 2]},
    ]
    call = read({"inputs": inputs, "parameters": {"binary_data_output": True}}, signature=PAIR)
    assert [tensor.name for tensor in call.tensors] == ["a", "b"]
    assert call.binary is None
    with pytest.raises(InvalidInput, match="sending FP16"):
        read({"inputs": inputs}, signature=PAIR)


def test_binary_inputs_are_cut_from_the_rest():
    head = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    data = struct.pack("<3f", 1, 2, 3)
    assert bytes(read({"inputs": [head]}, data).body[0]) == data
    for wrong in (data[:-1], data + b"\0"):
        with pytest.raises(ClientError):
            read({"inputs": [head]}, wrong)
    for size in (-1, "12", 1.5, True, 2**70):
        with pytest.raises(ClientError):
            read({"inputs": [head | {"parameters": {"binary_data_size": size}}]}, data)


def test_shared_memory_is_unsupported_where_it_is_not_allowed():
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 12}
    with pytest.raises(Unsupported, match="--allow-client-shm"):
        read({"inputs": [x(parameters=region)]})
    with pytest.raises(Unsupported, match="--allow-client-shm"):
        read({"inputs": [x()], "outputs": [{"name": "y", "parameters": region}]})


@pytest.fixture
def shared(tmp_path):
    (tmp_path / "serinus-client-a").write_bytes(struct.pack("<3f", 1, 2, 3) + bytes(100))
    regions = Regions(1 << 20, tmp_path)
    regions.register("k", "r", "/serinus-client-a", 0, 100)
    return regions.of("k")


def test_tensors_come_from_shared_memory_and_go_there(shared, tmp_path):
    given = {"name": "x", "shape": [1, 3], "datatype": "FP32"}
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 12}
    outputs = [{"name": "y", "parameters": region | {"shared_memory_offset": 20}}]
    call = read({"inputs": [given | {"parameters": region}], "outputs": outputs}, shared=shared)
    assert bytes(call.body[0]) == struct.pack("<3f", 1, 2, 3)
    assert call.binary == frozenset()
    text, parts = answers.write(call, "m", "1", [TensorHeader("y", "FP32", [1, 2], 8)], memoryview(b"abcdefgh"))
    assert msgspec.json.decode(text)["outputs"] == [
        {
            "name": "y", "datatype": "FP32", "shape": [1, 2],
            "parameters": {"shared_memory_region": "r", "shared_memory_offset": 20, "shared_memory_byte_size": 8},
        }
    ]  # fmt: skip
    assert parts == []
    assert (tmp_path / "serinus-client-a").read_bytes()[20:28] == b"abcdefgh"
    for both in ({"data": [1, 2, 3]}, {"parameters": region | {"binary_data_size": 12}}):
        with pytest.raises(ClientError, match="both"):
            read({"inputs": [given | {"parameters": region} | both]}, shared=shared)
    with pytest.raises(InvalidInput, match="binary data"):
        read({"inputs": [given | {"parameters": region | {"shared_memory_byte_size": 16}}]}, shared=shared)
    for more in ({"classification": 1}, {"binary_data": True}):
        with pytest.raises(InvalidInput, match="shared memory"):
            read({"inputs": [x()], "outputs": [{"name": "y", "parameters": region | more}]}, shared=shared)


def test_a_ranked_output_is_texts_in_json_or_bytes():
    named = msgspec.structs.replace(SIGNATURE, labels=["cat", "dog"])
    header = [TensorHeader("y", "FP32", [2, 2], 16)]
    body = memoryview(struct.pack("<4f", 0.5, 2, 7, 1))
    for binary in (False, True):
        outputs = [{"name": "y", "parameters": {"classification": 1, "binary_data": binary}}]
        call = read({"inputs": [x([1.0] * 6, [2, 3])], "outputs": outputs}, signature=named)
        text, parts = answers.write(call, "m", "1", header, body)
        told = msgspec.json.decode(text)["outputs"][0]
        assert (told["datatype"], told["shape"]) == ("BYTES", [2, 1])
        data = codec.to_json(memoryview(b"".join(parts)), "BYTES", "y") if binary else told["data"]
        assert data == ["2.000000:1:dog", "7.000000:0:cat"]
    with pytest.raises(InvalidInput, match="unsupported type 'FP16'"):
        read(
            {"inputs": [{"name": "a", "shape": [2], "datatype": "INT64", "data": [1, 2]},
                        {"name": "b", "shape": [0], "datatype": "BYTES", "data": []}],
             "outputs": [{"name": "y", "parameters": {"classification": 1}}]},
            signature=PAIR,
        )  # fmt: skip


ELEMENTS = {
    "BOOL": st.booleans(),
    "BYTES": st.text(max_size=8),
    "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "FP64": st.floats(allow_nan=False, allow_infinity=False),
} | {
    f"{sign}INT{bits}": st.integers(*((0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)))
    for sign in ("", "U")
    for bits in (8, 16, 32, 64)
}


@pytest.mark.parametrize("datatype", sorted(ELEMENTS))
@given(data=st.data())
def test_every_datatype_survives_json_and_bytes(datatype, data):
    values = data.draw(st.lists(ELEMENTS[datatype], max_size=12))
    signature = Signature([TensorSpec("x", datatype, [-1])], [TensorSpec("x", datatype, [-1])])
    given_json = {"name": "x", "shape": [len(values)], "datatype": datatype, "data": values}
    call = read({"inputs": [given_json]}, signature=signature)
    packed = b"".join(call.body)
    text, _ = answers.write(call, "m", "1", call.tensors, memoryview(packed))
    assert msgspec.json.decode(text)["outputs"][0]["data"] == values
    head = {"name": "x", "shape": [len(values)], "datatype": datatype, "parameters": {"binary_data_size": len(packed)}}
    again = read({"inputs": [head], "parameters": {"binary_data_output": True}}, packed, signature)
    assert b"".join(answers.write(again, "m", "1", again.tensors, memoryview(packed))[1]) == packed


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_survive_as_bytes(datatype):
    signature = Signature([TensorSpec("x", datatype, [-1])], [TensorSpec("x", datatype, [-1])])
    head = {"name": "x", "shape": [3], "datatype": datatype, "parameters": {"binary_data_size": 6}}
    call = read({"inputs": [head], "parameters": {"binary_data_output": True}}, b"abcdef", signature)
    _, parts = answers.write(call, "m", "1", call.tensors, memoryview(b"".join(call.body)))
    assert b"".join(parts) == b"abcdef"


def test_wanted_outputs_are_checked():
    call = read({"inputs": [x()], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]})
    assert (call.outputs, call.binary) == (["y"], frozenset({"y"}))
    with pytest.raises(InvalidInput, match="unexpected inference output 'q'"):
        read({"inputs": [x()], "outputs": [{"name": "q"}]})
    for value in ("false", 0, 1.0):
        with pytest.raises(InvalidInput, match="'binary_data' must be true or false"):
            read({"inputs": [x()], "outputs": [{"name": "y", "parameters": {"binary_data": value}}]})
        with pytest.raises(InvalidInput, match="'binary_data_output' must be true or false"):
            read({"inputs": [x()], "parameters": {"binary_data_output": value}})


def test_a_raw_body_is_one_row():
    call = calls.read_raw(memoryview(struct.pack("<3f", 1, 2, 3)), "m", SIGNATURE)
    assert call.tensors[0].shape == [1, 3]
    assert call.binary is None
    with pytest.raises(InvalidInput):
        calls.read_raw(memoryview(b"12345"), "m", SIGNATURE)
    with pytest.raises(InvalidInput):
        calls.read_raw(memoryview(b"12345"), "m", PAIR)
    text = Signature(inputs=[TensorSpec("t", "BYTES", [-1, 1])], outputs=[], max_batch_size=8)
    assert calls.read_raw(memoryview(b"hello"), "m", text).body == [b"\5\0\0\0hello"]


def test_an_answer_carries_json_and_bytes():
    call = read({"id": "9", "inputs": [x()]})
    tensors = [TensorHeader("y", "FP32", [1, 2], 8)]
    body = memoryview(struct.pack("<2f", 0.5, 2))
    text, parts = answers.write(call, "m", "3", tensors, body)
    assert msgspec.json.decode(text) == {
        "model_name": "m",
        "model_version": "3",
        "id": "9",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 2.0]}],
    }
    assert parts == []
    call.binary = None
    text, parts = answers.write(call, "m", "3", tensors, body)
    assert msgspec.json.decode(text)["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert b"".join(parts) == bytes(body)


@pytest.mark.parametrize("value", ["x", -1, 2**63, 1.5, True])
def test_a_timeout_that_is_no_number_of_microseconds_is_refused(value):
    with pytest.raises(InvalidInput, match="timeout"):
        read({"inputs": [x()], "parameters": {"timeout": value}})


def test_parameters_fit_64_bits():
    with pytest.raises(InvalidInput, match="64 bits"):
        read({"inputs": [x()], "parameters": {"seed": 2**64}})


def mutate(rng, data):
    data = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(5)
        if what == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif what == 1:
            data[at:at] = rng.choice(
                [b"[", b"-", b"1e400", b"null", b'"', b"\0", b"9" * 25, b'{"a":1}', bytes([rng.randrange(256)])]
            )
        elif what == 2:
            del data[at : at + rng.randint(1, 8)]
        elif what == 3:
            data[at:at] = data[max(0, at - 12) : at]
        else:
            data = data[:at]
    return bytes(data)


SEEDS = [
    (msgspec.json.encode({"id": "1", "inputs": [x()], "parameters": {"timeout": 10}}), b"", SIGNATURE),
    (
        msgspec.json.encode(
            {
                "inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}}],
                "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
            }
        ),
        bytes(24),
        SIGNATURE,
    ),
    (
        msgspec.json.encode(
            {
                "inputs": [
                    {"name": "a", "shape": [2], "datatype": "INT64", "data": [[1], [2]]},
                    {"name": "b", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 11}},
                ],
                "parameters": {"binary_data_output": True},
            }
        ),
        b"\3\0\0\0abc\0\0\0\0",
        PAIR,
    ),
    (
        msgspec.json.encode(
            {
                "inputs": [x()],
                "parameters": {"sequence_id": 3, "sequence_start": True, "priority": "1", "mine": 0.5},
                "outputs": [{"name": "y", "parameters": {"classification": 1, "binary_data": True}}],
            }
        ),
        b"",
        SIGNATURE,
    ),
    (
        msgspec.json.encode(
            {
                "inputs": [
                    {
                        "name": "x", "shape": [1, 3], "datatype": "FP32",
                        "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 12},
                    }
                ],
                "outputs": [
                    {"name": "y", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8}}
                ],
            }
        ),
        b"",
        SIGNATURE,
    ),
]  # fmt: skip


def test_ten_thousand_mutations_raise_nothing_but_typed_errors(shared):
    rng = random.Random(20_20)
    read_well = 0
    for turn in range(10_000):
        head, rest, signature = SEEDS[turn % len(SEEDS)]
        whole = mutate(rng, head + rest)
        split = len(head) if rng.random() < 0.7 else rng.randrange(len(whole) + 1)
        view = memoryview(whole)
        try:
            calls.read(calls.parse(view[:split]), view[split:], "m", signature, shared=shared)
            read_well += 1
        except ClientError:
            pass
        except Exception as error:
            pytest.fail(f"seed 2020, turn {turn}: {error!r} for {whole!r}")
    assert 0 < read_well < 10_000


def test_five_thousand_raw_bodies_raise_nothing_but_typed_errors():
    rng = random.Random(20_21)
    signatures = [
        Signature([TensorSpec("x", datatype, shape)], [TensorSpec("y", "FP32", [1])], max_batch_size=batch)
        for datatype in DATATYPES
        for shape, batch in (([-1, 3], 4), ([-1], 0), ([2, -1], 0), ([-1, -1], 0), ([], 0), ([0], 0))
    ]
    read_well = 0
    for turn in range(5000):
        body = rng.randbytes(rng.randrange(64))
        try:
            calls.read_raw(memoryview(body), "m", signatures[turn % len(signatures)])
            read_well += 1
        except ClientError:
            pass
        except Exception as error:
            pytest.fail(f"seed 2021, turn {turn}: {error!r} for {body!r}")
    assert 0 < read_well < 5000


LONG = b"[" + b"1.5," * 50_000 + b"1.5]"


def large(shape, datatype="FP32", name="x", data=LONG):
    head = b'{"inputs": [{"name": "%s", "datatype": "%s", "shape": %s, "data": ' % (
        name.encode(), datatype.encode(), str(shape).encode())  # fmt: skip
    return head + data + b"}]}"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (large([4, 3]), "more elements"),
        (large([16_667, 3]), "batch-size must be <= 4"),
        (large([1, 50_001]), "unexpected shape"),
        (large([1, 3], "INT8"), "data-type"),
        (large([1, 3], name="nope"), "unexpected inference input"),
        (large([-1, 3]), "invalid dimension"),
    ],
)
def test_a_large_input_that_does_not_fit_is_refused_before_its_json_is_read(monkeypatch, body, text):
    monkeypatch.setattr(codec, "_flat", lambda *_: pytest.fail("it was read"))
    with pytest.raises(InvalidInput, match=text):
        read(body)


@pytest.mark.parametrize("text", [b'"a",', b'"\\"",', b'"\\\\",', b'"",'])
def test_a_large_array_of_texts_is_counted_before_it_is_read(monkeypatch, text):
    signature = Signature(inputs=[TensorSpec("x", "BYTES", [-1])], outputs=[])
    monkeypatch.setattr(codec, "_flat", lambda *_: pytest.fail("it was read"))
    with pytest.raises(InvalidInput, match="more elements"):
        read(large([1], "BYTES", data=b"[" + text * 60_000 + b'""]'), signature=signature)


def test_one_long_text_of_quotes_and_commas_is_one_element():
    signature = Signature(inputs=[TensorSpec("x", "BYTES", [-1])], outputs=[])
    text = b'["' + b'\\",' * 60_000 + b'"]'
    assert read(large([1], "BYTES", data=text), signature=signature).tensors[0].size_bytes == 120_004


def test_a_large_input_that_fits_is_read():
    wide = Signature(inputs=[TensorSpec("x", "FP32", [-1, 50_001])], outputs=[], max_batch_size=4)
    for data, shape in ((LONG, [1, 50_001]), (b"[" + LONG + b"]", [1, 50_001])):
        assert read(large(shape, data=data), signature=wide).tensors[0].size_bytes == 4 * 50_001
