"""The try-it form's way to a prediction: a short-lived signed token, and one call through the gateway like anybody's.

The token is `ser_tok.<base64url(JSON {u, e, exp, s})>.<hex HMAC-SHA256 of the middle part>`, signed with the secret
that travels in the routing table: user, endpoint, expiry (unix s), source.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

TOKEN_LIFE_S = 60
SOURCE = "playground"


def make_token(secret: str, *, user: str, endpoint: str, now_unix_s: float | None = None) -> str:
    """A token with which `user` may call `endpoint` for TOKEN_LIFE_S seconds."""
    expires = int((time.time() if now_unix_s is None else now_unix_s) + TOKEN_LIFE_S)
    claims = json.dumps({"u": user, "e": endpoint, "exp": expires, "s": SOURCE}, separators=(",", ":")).encode()
    middle = base64.urlsafe_b64encode(claims).rstrip(b"=").decode()
    mark = hmac.new(secret.encode(), middle.encode(), hashlib.sha256).hexdigest()
    return f"ser_tok.{middle}.{mark}"


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
