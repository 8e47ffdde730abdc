"""The playground's token, the example request, the ready-to-paste calls."""

from __future__ import annotations

import ast
import json
import shlex

import pytest

from console.playground import TOKEN_LIFE_S, example_of, make_token
from console.snippets import snippets
from inference.errors import Unauthenticated
from inference.gateway.admission import Keys
from inference.protocol.routes import RoutingTable

SIGNATURE = {
    "inputs": [
        {"name": "pixels", "datatype": "FP32", "shape": [-1, 64]},
        {"name": "it's", "datatype": "BYTES", "shape": [-1]},
    ],
    "outputs": [],
}


def test_a_gateway_with_the_same_secret_takes_the_token_for_that_endpoint_only() -> None:
    token = make_token("s3cret", user="olga", endpoint="digits", now_unix_s=1000)
    caller = Keys(RoutingTable(generation=1, token_secret="s3cret"), now=lambda: 1001.0).caller(token)
    assert caller.may("digits")
    assert not caller.may("minilm")


@pytest.mark.parametrize(("secret", "at"), [("other", 1001.0), ("s3cret", 1000.0 + TOKEN_LIFE_S + 1), ("", 1001.0)])
def test_a_foreign_secret_and_an_old_token_are_refused(secret: str, at: float) -> None:
    token = make_token("s3cret", user="olga", endpoint="digits", now_unix_s=1000)
    with pytest.raises(Unauthenticated):
        Keys(RoutingTable(generation=1, token_secret=secret), now=lambda: at).caller(token)


def test_the_example_fills_every_input() -> None:
    pixels, text = example_of(SIGNATURE)["inputs"]
    assert pixels["shape"] == [1, 64]
    assert pixels["data"] == [0] * 64
    assert text["data"] == ["A short sentence."]


def test_the_snippets_are_valid_and_hold_no_key() -> None:
    found = {one["id"]: one["text"] for one in snippets("http://h:8000/", "digits", SIGNATURE, key=True)}
    words = shlex.split(found["curl"].replace("\\\n", " "))
    assert words[2] == "http://h:8000/v2/models/digits/infer"
    assert json.loads(words[words.index("-d") + 1]) == example_of(SIGNATURE)
    for name in ("python", "triton"):
        ast.parse(found[name])
        assert "SERINUS_API_KEY" in found[name]


def test_an_open_endpoint_is_called_without_a_key() -> None:
    for one in snippets("http://h:8000", "digits", SIGNATURE, key=False):
        assert "SERINUS_API_KEY" not in one["text"]
        assert "import os" not in one["text"]
