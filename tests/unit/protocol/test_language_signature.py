"""Clients see one pair of tensors of a language model; its replica also takes the OpenAI doors' own."""

import pytest

from inference.errors import InvalidInput
from inference.protocol.generation import language_signature
from inference.protocol.messages import Infer, TensorHeader
from inference.protocol.settings import RuntimeSettings
from inference.protocol.signatures import public_signature
from inference.replica.checks import read


def asked(*names):
    data = b"\x02\x00\x00\x00hi"
    return Infer(1, 0, [TensorHeader(name, "BYTES", [1], len(data)) for name in names]), memoryview(data * len(names))


def test_clients_do_not_see_the_engine_s_own_pair():
    public = public_signature(language_signature(), RuntimeSettings())
    assert [spec.name for spec in public.inputs] == ["text_input"]
    assert [spec.name for spec in public.outputs] == ["text_output"]


@pytest.mark.parametrize("name", ["text_input", "request"])
def test_either_input_is_enough(name):
    inputs, _ = read(language_signature(), "m", *asked(name))
    assert {key: list(value) for key, value in inputs.items()} == {name: [b"hi"]}


@pytest.mark.parametrize(
    ("names", "words"),
    [((), "Missing: \\['text_input'\\]"), (("request", "text_input"), "unexpected inference input 'text_input'")],
)
def test_none_or_both_are_refused(names, words):
    with pytest.raises(InvalidInput, match=words):
        read(language_signature(), "m", *asked(*names))
