"""What is kept of an answer and of a request, and what may be copied at all."""

import struct

import pytest

from inference.gateway.calls import Call
from inference.gateway.keeping import Kept, excerpt, is_greedy
from inference.gateway.mirror import may_be_copied
from inference.gateway.outbox import Outbox
from inference.gateway.shared_memory import _Copy
from inference.protocol import generation
from inference.protocol.generation import Chat, Event, Generate, Piece, Sampling
from inference.protocol.messages import Answer, SequenceControl, TensorHeader


def part(body, name="y", datatype="UINT8", shape=None, final=True):
    return Answer(1, [TensorHeader(name, datatype, shape or [len(body)], len(body))], 1, 0, 0, final), memoryview(body)


def event(*pieces):
    data = generation.encode_event(Event(list(pieces)))
    return part(len(data).to_bytes(4, "little") + data, generation.EVENT, "BYTES", [1], final=False)


def call(*tensors, **more):
    headers = [TensorHeader(name, datatype, shape, len(data)) for name, datatype, shape, data in tensors]
    return Call("", headers, [data for *_, data in tensors], **more)


def language(asked):
    data = generation.encode_asked(asked)
    return call((generation.REQUEST, "BYTES", [1], len(data).to_bytes(4, "little") + data))


def test_an_answers_tensors_are_cut_apart():
    kept = Kept(100)
    answer = Answer(1, [TensorHeader("a", "UINT8", [1], 1), TensorHeader("b", "UINT8", [2], 2)], 1, 0, 0)
    kept.add(answer, memoryview(b"xyz"))
    assert [(one.name, bytes(one.data)) for one in kept.outputs(is_language=False)] == [("a", b"x"), ("b", b"yz")]


def test_what_is_larger_than_the_limit_is_not_kept_at_all():
    kept = Kept(5)
    kept.add(*part(b"123", final=False))
    kept.add(*part(b"456"))
    assert (kept.is_whole, kept.parts, kept.outputs(is_language=False)) == (False, [], None)


def test_several_parts_are_no_answer_unless_they_are_text():
    kept = Kept(100)
    kept.add(*part(b"1", final=False))
    kept.add(*part(b"2"))
    assert kept.outputs(is_language=False) is None
    assert Kept(100).outputs(is_language=True) is None


def test_what_a_language_model_said_is_put_together_by_choice():
    kept = Kept(10_000)
    kept.add(*event(Piece(1, "two ", tokens=[7]), Piece(0, "one", tokens=[5])))
    kept.add(*event(Piece(1, "three", tokens=[8])))
    text, tokens = kept.outputs(is_language=True)
    assert (text.name, text.shape, text.data) == ("text", [2], b"\3\0\0\0one\x09\0\0\0two three")
    assert (tokens.name, tokens.shape) == ("token_ids", [2, 2])
    assert struct.unpack("<4q", tokens.data) == (5, -1, 7, 8)


@pytest.mark.parametrize(
    ("asked", "greedy"),
    [
        (language(Generate("a", Sampling(temperature=0))), True),
        (language(Generate("a", Sampling(temperature=0.1))), False),
        (language(generation.Tokenize("a")), True),
        (call(("text_input", "BYTES", [1], b"\1\0\0\0a"), parameters={"temperature": 0}), True),
        (call(("text_input", "BYTES", [1], b"\1\0\0\0a")), False),
    ],
)
def test_only_what_leaves_nothing_to_chance_is_repeatable(asked, greedy):
    assert is_greedy(asked) is greedy


def test_an_excerpt_shows_first_values_and_last_words():
    numbers = ("x", "FP32", [1, 3], struct.pack("<3f", 1, 2.5, 3))
    words = ("t", "BYTES", [2], b"\5\0\0\0hello\1\0\0\0b")
    assert excerpt(call(numbers, words), 100) == "x FP32[1, 3]: 1 2.5 3; t BYTES[2]: 'hello'"
    assert len(excerpt(call(numbers, words), 20)) == 20
    chat = Chat([{"role": "system", "content": "be kind"}, {"role": "user", "content": [{"text": "hi"}]}])
    assert excerpt(language(Generate(chat)), 100) == "system: be kind\nuser: hi"
    assert excerpt(language(Generate(chat)), 8) == "user: hi"


def test_sequences_and_shared_memory_are_not_copied():
    plain = ("x", "UINT8", [1], b"1")
    assert may_be_copied(call(plain))
    assert not may_be_copied(call(plain, sequence=SequenceControl(7, start=True)))
    assert not may_be_copied(call(("x", "UINT8", [1], memoryview(_Copy(1)))))


def test_what_waits_to_be_sent_is_bounded_in_number_and_bytes():
    box = Outbox("s", b"f", maxlen=10, most=3, most_bytes=10)
    for entry in (b"1", b"2", b"3", b"4"):
        box.put(entry)
    assert list(box._waiting) == [b"2", b"3", b"4"]
    box.put(b"123456789")
    assert list(box._waiting) == [b"4", b"123456789"]
    box.put(b"x" * 11)
    assert list(box._waiting) == []


def test_the_engine_means_the_same_by_background():
    from inference.generation import scheduler

    assert generation.BACKGROUND == scheduler.BACKGROUND
