"""A ModelInferRequest as a Call, and typed contents as bytes."""

import random
import struct
from array import array
from collections import Counter

import pytest

from inference.errors import InvalidInput, Malformed, SerinusError, Unsupported
from inference.gateway import codec
from inference.gateway.classification import Ranking
from inference.gateway.grpc import requests, tensors, wire
from inference.gateway.grpc.large import Large
from inference.protocol.messages import SequenceControl
from inference.protocol.oip import Signature, TensorSpec
from tests.support.grpc_fuzz import golden, mutated

KINDS = {
    "BOOL": ("bool_contents", [True, False, True], bytes([1, 0, 1])),
    "INT8": ("int_contents", [-128, 0, 127], array("b", [-128, 0, 127]).tobytes()),
    "INT16": ("int_contents", [-(2**15), 0, 2**15 - 1], array("h", [-(2**15), 0, 2**15 - 1]).tobytes()),
    "INT32": ("int_contents", [-(2**31), 0, 2**31 - 1], array("i", [-(2**31), 0, 2**31 - 1]).tobytes()),
    "INT64": ("int64_contents", [-(2**63), 0, 2**63 - 1], array("q", [-(2**63), 0, 2**63 - 1]).tobytes()),
    "UINT8": ("uint_contents", [0, 1, 255], bytes([0, 1, 255])),
    "UINT16": ("uint_contents", [0, 1, 2**16 - 1], array("H", [0, 1, 2**16 - 1]).tobytes()),
    "UINT32": ("uint_contents", [0, 1, 2**32 - 1], array("I", [0, 1, 2**32 - 1]).tobytes()),
    "UINT64": ("uint64_contents", [0, 1, 2**64 - 1], array("Q", [0, 1, 2**64 - 1]).tobytes()),
    "FP32": ("fp32_contents", [0.5, -1.25, float("inf")], struct.pack("<3f", 0.5, -1.25, float("inf"))),
    "FP64": ("fp64_contents", [0.1, -1e300, 0.0], struct.pack("<3d", 0.1, -1e300, 0.0)),
    "BYTES": ("bytes_contents", [b"", b"a\xff", b"xyz"], b"".join(map(codec.bytes_element, [b"", b"a\xff", b"xyz"]))),
}


def signature(datatype="FP32", shape=(-1,), labels=(), outputs=None):
    return Signature(
        inputs=[TensorSpec("x", datatype, list(shape))],
        outputs=outputs or [TensorSpec("y", datatype, list(shape))],
        labels=list(labels),
    )


def request(datatype="FP32", shape=(3,), **contents):
    found = wire.INFER_REQUEST(model_name="m")
    tensor = found.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return found


def read(found, spec=None):
    return requests.read(found, found.raw_input_contents, "m", spec or signature())


@pytest.mark.parametrize("datatype", sorted(KINDS))
def test_every_datatype_goes_both_ways(datatype):
    field, values, data = KINDS[datatype]
    call = read(request(datatype, **{field: values}), signature(datatype))
    assert bytes(call.body[0]) == data
    assert call.binary == frozenset()
    contents = wire.kind("InferTensorContents")()
    tensors.fill_contents(contents, memoryview(data), datatype, "y")
    assert list(getattr(contents, field)) == values
    raw = request(datatype)
    raw.raw_input_contents.append(data)
    call = read(raw, signature(datatype))
    assert (bytes(call.body[0]), call.binary) == (data, None)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_come_raw_only(datatype):
    with pytest.raises(InvalidInput, match="raw_input_contents"):
        read(request(datatype, fp32_contents=[1, 2, 3]), signature(datatype))
    raw = request(datatype)
    raw.raw_input_contents.append(b"\x00\x3c" * 3)
    assert read(raw, signature(datatype)).binary is None


def test_an_answer_with_half_floats_is_raw_even_for_a_typed_request():
    spec = signature(outputs=[TensorSpec("y", "FP16", [-1]), TensorSpec("z", "FP32", [-1])])
    found = request(fp32_contents=[1, 2, 3])
    assert read(found, spec).binary is None
    found.outputs.add(name="z")
    assert read(found, spec).binary == frozenset()


@pytest.mark.parametrize(
    ("datatype", "contents", "error", "words"),
    [
        ("INT8", {"int_contents": [1, 2, 128]}, InvalidInput, "out of range"),
        ("UINT16", {"uint_contents": [1, 2, 2**16]}, InvalidInput, "out of range"),
        ("FP32", {"fp32_contents": [1, 2]}, InvalidInput, "holds 2 elements"),
        ("FP32", {"fp64_contents": [1, 2, 3]}, Malformed, "belong in 'fp32_contents'"),
        ("FP99", {"fp32_contents": [1, 2, 3]}, InvalidInput, "unknown datatype"),
    ],
    ids=["int8", "uint16", "short", "other", "unknown"],
)
def test_contents_that_do_not_fit_are_refused(datatype, contents, error, words):
    with pytest.raises(error, match=words):
        read(request(datatype, **contents), signature(datatype))


def test_raw_and_typed_do_not_mix():
    found = request(fp32_contents=[1, 2, 3])
    found.raw_input_contents.append(b"\0" * 12)
    with pytest.raises(Malformed, match="contents field must not be specified"):
        read(found)
    found = request()
    found.raw_input_contents.extend([b"\0" * 12, b""])
    with pytest.raises(Malformed, match="has 2 elements"):
        read(found)


def test_parameters_of_every_kind_are_read():
    found = request(fp32_contents=[1, 2, 3])
    found.parameters["timeout"].int64_param = 7
    found.parameters["priority"].uint64_param = 2
    found.parameters["sequence_id"].string_param = "s"
    found.parameters["sequence_start"].bool_param = True
    found.parameters["sequence_end"].bool_param = False
    found.parameters["triton_enable_empty_final_response"].bool_param = True
    found.parameters["own"].double_param = 0.5
    call = read(found)
    assert (call.timeout_us, call.priority) == (7, 2)
    assert call.sequence == SequenceControl("s", True, False)
    assert call.parameters == {"own": 0.5}
    assert requests.wants_empty_final(found)
    found.parameters["empty"].SetInParent()
    with pytest.raises(InvalidInput, match="'empty' has no value"):
        read(found)


def test_a_wanted_output_may_be_ranked():
    found = request(fp32_contents=[1, 2, 3])
    wanted = found.outputs.add(name="y")
    wanted.parameters["classification"].int64_param = 2
    assert read(found, signature(labels=["a"])).special == {"y": Ranking(2, ["a"], False)}
    wanted.parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(Unsupported, match="allow-client-shm"):
        read(found)


@pytest.mark.parametrize("text", ["-1", "x", "1.0", "0", "9" * 10, "\u0661"])
def test_a_version_is_a_number(text):
    found = wire.INFER_REQUEST(model_name="m", model_version=text)
    with pytest.raises(InvalidInput, match="should be an integer > 0"):
        requests.version_of(found)


@pytest.mark.parametrize("value", [True, -(2**63), 2**63 - 1, 2**64 - 1, 0.5, "text"], ids=str)
def test_a_parameter_goes_both_ways(value):
    answer = wire.INFER_RESPONSE()
    tensors.set_parameter(answer.parameters, "p", value)
    found = tensors.parameters_of(answer.parameters)["p"]
    assert (found, type(found)) == (value, type(value))


def outcome(take):
    """A call's tensors and parameters, or the error's code. Raises what is no typed error."""
    try:
        found, raw = take()
        call = requests.read(
            found, raw, "mlp", Signature([TensorSpec("x", "FP32", [-1, 16])], [TensorSpec("y", "FP32", [-1, 4])])
        )
        return (
            [(one.name, one.datatype, one.shape) for one in call.tensors],
            [bytes(one) for one in call.body],
            call.parameters,
        )
    except SerinusError as error:
        return error.code


def in_pieces(data, chance):
    found, at = Large(len(data), lambda _, size: memoryview(bytearray(size))), 0
    while at < len(data):
        size = chance.randint(1, max(1, len(data) // 3))
        found.feed(data[at : at + size])
        at += size
    return found.read()


def test_mutations_of_good_messages_raise_nothing_but_typed_errors_and_are_read_alike_in_pieces():
    """5,000 of them; what is received in pieces is what protobuf reads of the whole."""
    chance, seen = random.Random(20_22), Counter()
    good = golden()["/inference.GRPCInferenceService/ModelInfer"]
    for number in range(5000):
        data = mutated(chance.choice(good[:2] if number % 10 else good), chance)
        whole = outcome(lambda data=data: wire.infer_request(data))
        seen[whole if isinstance(whole, str) else "ok"] += 1
        if data:
            assert outcome(lambda data=data: in_pieces(data, chance)) == whole, (number, data.hex())
    assert seen.keys() <= {"ok", "malformed", "invalid_input", "unsupported"}
    assert min(seen[code] for code in ("ok", "malformed", "invalid_input")) > 100, seen
