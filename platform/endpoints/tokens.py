"""Short-lived signed tokens with which the platform itself calls an endpoint for somebody whose right it has checked.

`ser_tok.<base64url(JSON {u, e, exp, s})>.<hex HMAC-SHA256 of the middle part>`, signed with the secret that travels in
the routing table: user, endpoint, expiry (unix s), source.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

TOKEN_LIFE_S = 60


def make_token(secret: str, *, user: str, endpoint: str, source: str, now_unix_s: float | None = None) -> str:
    """A token with which `user` may call `endpoint` for TOKEN_LIFE_S seconds."""
    expires = int((time.time() if now_unix_s is None else now_unix_s) + TOKEN_LIFE_S)
    claims = json.dumps({"u": user, "e": endpoint, "exp": expires, "s": source}, separators=(",", ":")).encode()
    middle = base64.urlsafe_b64encode(claims).rstrip(b"=").decode()
    mark = hmac.new(secret.encode(), middle.encode(), hashlib.sha256).hexdigest()
    return f"ser_tok.{middle}.{mark}"
