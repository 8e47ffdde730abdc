"""The bytes of tensor messages: cut and joined by hand, and the same as protobuf's."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import Malformed
from inference.gateway.grpc import wire

LARGE = wire.LARGE_BYTES


def sample(sizes, identity="7", name="mlp"):
    request = wire.INFER_REQUEST(model_name=name, id=identity, model_version="3")
    request.parameters["timeout"].int64_param = 5
    for index, size in enumerate(sizes):
        tensor = request.inputs.add(name=f"x{index}", datatype="UINT8")
        tensor.shape.extend([1, size])
        request.raw_input_contents.append(bytes([index % 251]) * size)
    return request


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3 * LARGE // 2), min_size=0, max_size=5), st.text(max_size=20))
def test_a_large_request_is_read_as_protobuf_reads_it(sizes, identity):
    request = sample(sizes, identity)
    found, raw = wire.infer_request(request.SerializeToString())
    assert [bytes(one) for one in raw] == list(request.raw_input_contents)
    request.ClearField("raw_input_contents")
    found.ClearField("raw_input_contents")
    assert found == request


def test_the_tensors_of_a_large_request_are_not_copied():
    data = sample([LARGE, 4]).SerializeToString()
    _, raw = wire.infer_request(data)
    assert all(isinstance(one, memoryview) and one.obj is data for one in raw)


def test_a_large_message_in_another_order_of_fields_is_read_too():
    first, second = sample([LARGE], "a"), sample([3], "b", name="")
    data = first.SerializeToString() + second.SerializeToString()
    found, raw = wire.infer_request(data)
    whole = wire.INFER_REQUEST.FromString(data)
    assert [len(one) for one in raw] == [LARGE, 3]
    assert (found.id, found.model_name) == (whole.id, whole.model_name) == ("b", "mlp")


@pytest.mark.parametrize("seed", range(6))
def test_a_broken_large_message_is_judged_as_protobuf_judges_it(seed):
    chance = random.Random(seed)
    good = sample([LARGE, 10]).SerializeToString()
    for _ in range(50):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.choice([chance.randrange(60), chance.randrange(len(data))])] = chance.randrange(256)
        if chance.random() < 0.3:
            del data[chance.randrange(LARGE, len(data)) :]
        try:
            wanted = wire.INFER_REQUEST.FromString(bytes(data))
        except Exception:  # whatever protobuf says: it is no message
            wanted = None
        try:
            found, raw = wire.infer_request(bytes(data))
        except Malformed:
            assert wanted is None
            continue
        assert wanted is not None
        assert [bytes(one) for one in raw] == list(wanted.raw_input_contents)
        assert (found.model_name, found.id, len(found.inputs)) == (wanted.model_name, wanted.id, len(wanted.inputs))


@settings(max_examples=50, deadline=None)
@given(
    st.text(max_size=200),
    st.lists(st.tuples(st.text(max_size=9), st.lists(st.integers(-1, 2**40), max_size=4), st.binary(max_size=300))),
)
def test_an_answer_is_what_protobuf_writes(identity, outputs):
    parts = [wire.model_fields("m", "12"), wire.id_field(identity)]
    parts += [wire.output_field(name, "FP32", tuple(shape)) for name, shape, _ in outputs]
    parts += wire.raw_fields([memoryview(data) for _, _, data in outputs])
    wanted = wire.INFER_RESPONSE(model_name="m", model_version="12", id=identity)
    for name, shape, data in outputs:
        wanted.outputs.add(name=name, datatype="FP32", shape=shape)
        wanted.raw_output_contents.append(data)
    assert wire.INFER_RESPONSE.FromString(b"".join(parts)) == wanted
    streamed = wire.STREAM_RESPONSE.FromString(b"".join(wire.streamed(parts)))
    assert streamed.infer_response == wanted
    assert not streamed.error_message


@pytest.mark.parametrize("more", [0, 1])
def test_a_large_request_of_too_many_fields_is_refused_at_the_first_too_many(more):
    fields = sample([LARGE]).SerializeToString()
    known = len(wire.INFER_REQUEST.FromString(fields).ListFields())
    assert known == 6  # a field each: one input, one parameter, one tensor
    data = fields + b"\x1a\0" * (wire.MAX_FIELDS - known + more)
    if more:
        with pytest.raises(Malformed, match="at most 4096 fields"):
            wire.infer_request(data)
    else:
        assert len(wire.infer_request(data)[1]) == 1
