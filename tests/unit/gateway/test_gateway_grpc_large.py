"""Large requests are read while they come, as protobuf reads them whole."""

import random

import pytest

from inference.errors import Malformed, NotFound
from inference.gateway.grpc import wire
from inference.gateway.grpc.large import Large


def sample(sizes, **more):
    request = wire.INFER_REQUEST(model_name="mlp", id="7", model_version="3", **more)
    request.parameters["timeout"].int64_param = 5
    for index, size in enumerate(sizes):
        request.inputs.add(name=f"x{index}", datatype="UINT8", shape=[1, size])
        request.raw_input_contents.append(random.Random(index).randbytes(size))
    return request


def fed(data, chance, place):
    """Reads it in pieces, some of them received in their place; answers the message and how many bytes that were."""
    found, at, direct = Large(len(data), place), 0, 0
    while at < len(data):
        room = found.room()
        size = min(chance.randint(1, 50), len(data) - at)
        if room is not None and chance.random() < 0.5:
            size = min(size, len(room))
            room[:size] = data[at : at + size]
            found.filled(size)
            direct += size
        else:
            found.feed(data[at : at + size])
        at += size
        assert found.left == len(data) - at
    return found.read(), direct


@pytest.mark.parametrize("seed", range(20))
def test_a_message_in_pieces_is_read_as_protobuf_reads_it(seed):
    chance = random.Random(seed)
    request = sample([chance.choice([0, 1, 7, 300, 900]) for _ in range(chance.randint(0, 5))])
    data = request.SerializeToString()
    if chance.random() < 0.5:  # fields in another order
        data += wire.INFER_REQUEST(id="later").SerializeToString()
        request.id = "later"
    seen = []

    def place(head, size):
        seen.append((head.model_name, head.model_version, size))
        return memoryview(bytearray(size))

    (found, raw), _ = fed(data, chance, place)
    assert [bytes(one) for one in raw] == list(request.raw_input_contents)
    assert len({id(one.obj) for one in raw}) <= 1  # one after the other, as a replica takes them
    assert [one[:2] for one in seen] == [("mlp", "3")] * bool(raw)
    request.ClearField("raw_input_contents")
    assert found == request


@pytest.mark.parametrize("seed", range(20))
def test_a_broken_message_is_malformed_and_never_anything_else(seed):
    chance = random.Random(seed)
    good = sample([300, 20]).SerializeToString()
    for _ in range(30):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.choice([chance.randrange(60), chance.randrange(len(data))])] = chance.randrange(256)
        del data[chance.randrange(1, len(data) + 1) :]
        try:
            found, raw = fed(bytes(data), chance, lambda _head, size: memoryview(bytearray(size)))[0]
        except Malformed:
            continue
        whole = wire.INFER_REQUEST.FromString(bytes(data))  # what we read, protobuf reads
        assert [bytes(one) for one in raw] == list(whole.raw_input_contents)
        assert (found.model_name, len(found.inputs)) == (whole.model_name, len(whole.inputs))


def test_a_caller_who_may_not_is_refused_when_the_tensors_begin():
    def place(_head, _size):
        raise NotFound("no")

    data = sample([5000]).SerializeToString()
    with pytest.raises(NotFound):
        Large(len(data), place).feed(data[:200])


@pytest.mark.parametrize("more", [0, 1])
def test_too_many_fields_are_refused_where_they_stand(more):
    data = sample([300]).SerializeToString() + b"\x1a\0" * (wire.MAX_FIELDS - 6 + more)
    found = Large(len(data), lambda _, size: memoryview(bytearray(size)))
    if more:
        with pytest.raises(Malformed, match="at most 4096 fields"):
            found.feed(data)
    else:
        found.feed(data)
        assert found.read()[0].model_name == "mlp"
