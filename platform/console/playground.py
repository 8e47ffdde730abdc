"""The try-it form's way to a prediction: a short-lived signed token (endpoints.tokens), and one call through the gateway
like anybody's.
"""

from __future__ import annotations

from typing import Any

from endpoints import tokens

TOKEN_LIFE_S = tokens.TOKEN_LIFE_S
SOURCE = "playground"


def make_token(secret: str, *, user: str, endpoint: str, now_unix_s: float | None = None) -> str:
    """A token with which `user` may call `endpoint` for TOKEN_LIFE_S seconds."""
    return tokens.make_token(secret, user=user, endpoint=endpoint, source=SOURCE, now_unix_s=now_unix_s)


def example_of(signature: dict[str, Any]) -> dict[str, Any]:
    """A small valid request for a signature: free dimensions are 1, numbers 0, texts a sentence."""
    return {"inputs": [_example_input(spec) for spec in signature.get("inputs", [])]}


MAX_EXAMPLE_VALUES = 4096


def _example_input(spec: dict[str, Any]) -> dict[str, Any]:
    shape = [1 if size < 0 else size for size in spec["shape"]]
    count = 1
    for size in shape:
        count *= size
    filler: Any = {"BYTES": "A short sentence.", "BOOL": False}.get(spec["datatype"], 0)
    data = [filler] * min(count, MAX_EXAMPLE_VALUES)
    return {"name": spec["name"], "datatype": spec["datatype"], "shape": shape, "data": data}
