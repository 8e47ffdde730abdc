"""Requests against a signature."""

import random

import numpy as np
import pytest

from inference.errors import ClientError, InvalidInput, Malformed
from inference.protocol.messages import Infer, TensorHeader
from inference.protocol.oip import Signature, TensorSpec
from inference.replica.checks import check_outputs, read

SIGNATURE = Signature(
    inputs=[TensorSpec("x", "FP32", [-1, 3]), TensorSpec("text", "BYTES", [-1])],
    outputs=[TensorSpec("y", "FP32", [-1])],
    max_batch_size=4,
)


def request(rows=2, **changes):
    text = b"".join(bytes([n, 0, 0, 0]) + b"a" * n for n in range(rows))
    data = {"x": np.arange(rows * 3, dtype="<f4").tobytes(), "text": text}
    headers = {"x": ["x", "FP32", [rows, 3]], "text": ["text", "BYTES", [rows]]}
    headers |= changes
    listed = [TensorHeader(*headers[name], size_bytes=len(data[name])) for name in headers]
    return Infer(1, 1000, listed), memoryview(b"".join(data.values()))


def test_inputs_come_out_typed_and_shaped():
    inputs, rows = read(SIGNATURE, "m", *request(3))
    assert rows == 3
    assert inputs["x"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert inputs["text"].tolist() == [b"", b"a", b"aa"]


def test_an_appended_dimension_of_one_is_forgiven():
    inputs, _ = read(SIGNATURE, "m", *request(2, text=["text", "BYTES", [2, 1]]))
    assert inputs["text"].shape == (2,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": ["z", "FP32", [2, 3]]}, "unexpected inference input 'z' for model 'm'"),
        ({"x": ["text", "BYTES", [2]]}, "twice"),
        ({"x": ["x", "FP64", [2, 3]]}, "data-type is 'FP64', but model 'm' expects 'FP32'"),
        ({"x": ["x", "FP32", [3, 2]]}, r"unexpected shape for input 'x' for model 'm'. Expected \[-1,3\], got \[3,2\]"),
        ({"x": ["x", "FP32", [6]]}, "unexpected shape"),
    ],
)
def test_what_does_not_fit_is_named(changes, words):
    with pytest.raises(InvalidInput, match=words):
        read(SIGNATURE, "m", *request(2, **changes))


def test_a_missing_input_is_named():
    message, body = request(1)
    with pytest.raises(InvalidInput, match=r"expected 2 inputs but got 1 inputs for model 'm'. Missing: \['text'\]"):
        read(SIGNATURE, "m", Infer(1, 0, message.tensors[:1]), body[:12])


def test_too_many_rows_are_refused():
    with pytest.raises(InvalidInput, match="inference request batch-size must be <= 4"):
        read(SIGNATURE, "m", *request(5))


def test_rows_must_agree():
    x, text = request(2)[0].tensors[0], request(1)[0].tensors[1]
    with pytest.raises(InvalidInput, match="same batch size"):
        read(SIGNATURE, "m", Infer(1, 0, [x, text]), memoryview(bytes(24) + bytes(4)))


@pytest.mark.parametrize("cut", [1, -1])
def test_a_body_one_byte_too_short_or_too_long_is_malformed(cut):
    message, body = request(2)
    with pytest.raises(Malformed):
        read(SIGNATURE, "m", message, memoryview(bytes(body) + b"x") if cut < 0 else body[:-1])


def test_an_unknown_output_is_named():
    check_outputs(SIGNATURE, "m", ["y"])
    with pytest.raises(InvalidInput, match="unexpected inference output 'q' for model 'm'"):
        check_outputs(SIGNATURE, "m", ["q"])


def test_a_negative_size_cannot_reach_back():
    message, body = request(1)
    wrong = [TensorHeader("x", "FP32", [1, 3], -4), message.tensors[1]]
    with pytest.raises(Malformed):
        read(SIGNATURE, "m", Infer(1, 0, wrong), body)


def test_random_headers_never_raise_anything_but_a_clients_error():
    rng = random.Random(11)
    pick = lambda *choices: rng.choice(choices)  # noqa: E731
    for _ in range(3000):
        headers = [
            TensorHeader(
                pick("x", "text", "", "\0"),
                pick("FP32", "BYTES", "BF16", "nope", "INT8"),
                [pick(-1, 0, 1, 2, 3, 1 << 62, -(1 << 62)) for _ in range(rng.randint(0, 4))],
                pick(-1, 0, 4, 12, 24, 1 << 40),
            )
            for _ in range(rng.randint(0, 3))
        ]
        try:
            read(SIGNATURE, "m", Infer(1, 0, headers), memoryview(rng.randbytes(rng.randint(0, 40))))
        except ClientError:
            continue
