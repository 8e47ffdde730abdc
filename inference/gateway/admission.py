"""Who may call what, and how much may wait: every answer is given at once, from memory.

A key is looked up by its id and its secret's digest compared in constant time; an unknown key goes through the same
steps and gets the same words as a revoked one. Keys expire by the wall clock. Retries draw on a budget per endpoint.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

import msgspec

from inference.errors import Forbidden, Overloaded, Unauthenticated
from inference.protocol.routes import EndpointRoute, RoutingTable

KEY_PREFIX = "ser_"
TOKEN_PREFIX = "ser_tok."  # noqa: S105 (a prefix, no secret)
MAX_CREDENTIAL_CHARS = 4096
RETRY_BURST = 32.0
RETRY_SHARE = 0.1
ALL = "*"
_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: `id` is the sticky key ("" for the anonymous), `endpoints` what the caller may reach."""

    id: str
    endpoints: frozenset[str]

    def may(self, endpoint: str) -> bool:
        return ALL in self.endpoints or endpoint in self.endpoints


ANONYMOUS = Caller("", frozenset())
TRUSTED = Caller("", frozenset({ALL}))


class _Token(msgspec.Struct):
    """The playground's token: user, endpoint, expiry (unix seconds), source."""

    u: str | int
    e: str
    exp: float
    s: str = ""


@dataclass(frozen=True, slots=True)
class _Key:
    digest: str
    caller: Caller
    expires_at_unix_s: float


class Keys:
    """The credentials of one routing table."""

    def __init__(self, table: RoutingTable, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._token_secret = table.token_secret.encode()
        self._keys = {
            key.id: _Key(
                key.digest,
                Caller(key.id, frozenset(key.endpoints)),
                key.expires_at_unix_s if key.expires_at_unix_s is not None else float("inf"),
            )
            for key in table.keys
        }

    def caller(self, credential: str) -> Caller:
        """Whose credential this is. Raises Unauthenticated, in the same words for every reason."""
        if len(credential) <= MAX_CREDENTIAL_CHARS:
            known = self._token(credential) if credential.startswith(TOKEN_PREFIX) else self._key(credential)
            if known is not None:
                return known
        raise Unauthenticated

    def _key(self, credential: str) -> Caller | None:
        name, _, secret = credential.partition(".")
        key = self._keys.get(name[len(KEY_PREFIX) :]) if name.startswith(KEY_PREFIX) else None
        digest = sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        same = hmac.compare_digest(digest, key.digest if key else _NO_DIGEST)
        if key is None or not same or key.expires_at_unix_s <= self._now():
            return None
        return key.caller

    def _token(self, credential: str) -> Caller | None:
        payload, _, signature = credential[len(TOKEN_PREFIX) :].partition(".")
        wanted = hmac.new(self._token_secret, payload.encode("utf-8", "surrogatepass"), sha256).hexdigest()
        same = hmac.compare_digest(wanted.encode(), signature.encode("utf-8", "surrogatepass"))
        if not same or not self._token_secret:
            return None
        try:
            token = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=_Token)
        except (binascii.Error, ValueError, msgspec.MsgspecError):
            return None
        if token.exp <= self._now():
            return None
        return Caller(f"user:{token.u}", frozenset({token.e}))


def admit_caller(keys: Keys, credential: str, name: str, endpoint: EndpointRoute | None, *, insecure: bool) -> Caller:
    """The caller, if it may use the endpoint `name` (None when there is no such endpoint: the answer must not tell).

    Raises Unauthenticated or Forbidden.
    """
    public = endpoint is not None and endpoint.public
    if credential:
        try:
            caller = keys.caller(credential)
        except Unauthenticated:
            if insecure:
                return TRUSTED
            raise
        if caller.may(name) or public or insecure:
            return caller
        raise Forbidden(f"This key may not use '{name}'")
    if insecure:
        return TRUSTED
    if public:
        return ANONYMOUS
    raise Unauthenticated


class Bucket:
    """Retry budget: every request adds a tenth of a retry, up to a burst; a retry takes one."""

    __slots__ = ("_tokens",)

    def __init__(self) -> None:
        self._tokens = RETRY_BURST

    def earn(self) -> None:
        self._tokens = min(RETRY_BURST, self._tokens + RETRY_SHARE)

    def take(self) -> bool:
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Queue:
    """Requests under way for one endpoint, with its retry budget. It outlives routing tables."""

    __slots__ = ("in_flight", "retries")

    def __init__(self) -> None:
        self.in_flight = 0
        self.retries = Bucket()

    def enter(self, limit: int) -> None:
        """Raises Overloaded at once when `limit` requests are under way."""
        if self.in_flight >= limit:
            raise Overloaded(retry_after_s=1.0)
        self.in_flight += 1
        self.retries.earn()

    def leave(self) -> None:
        self.in_flight -= 1
