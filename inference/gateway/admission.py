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

from inference.errors import Forbidden, Overloaded, RateLimited, Unauthenticated
from inference.protocol.comeback import Emptying, retry_after_s
from inference.protocol.routes import EndpointRoute, KeyRoute, RoutingTable

KEY_PREFIX = "ser_"
TOKEN_PREFIX = "ser_tok."  # noqa: S105 (a prefix, no secret)
MAX_CREDENTIAL_CHARS = 4096
RETRY_BURST = 32.0
RETRY_SHARE = 0.1
ALL = "*"
_NO_DIGEST = "0" * 64


class Limiter:
    """One key's token buckets, in requests and in rows a second; a second's worth may come at once. Rates of 0 are no
    bound. It outlives routing tables.
    """

    __slots__ = ("_now", "_requests", "_requests_at", "_rows", "_rows_at", "requests_per_s", "rows_per_s")

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self.requests_per_s = self.rows_per_s = 0.0
        self._requests = self._rows = float("inf")  # seconds' worth that may come at once: at first, all there can be
        self._requests_at = self._rows_at = now()

    def set(self, requests_per_s: float, rows_per_s: float) -> Limiter:
        self.requests_per_s, self.rows_per_s = requests_per_s, rows_per_s
        return self

    def request(self) -> None:
        """Takes one request. Raises RateLimited with the time until there is room again."""
        if self.requests_per_s:
            now = self._now()
            needed = 1 / self.requests_per_s
            have = min(max(1.0, needed), self._requests + now - self._requests_at)
            self._requests_at, self._requests = now, have
            self._requests = _taken(have, needed, needed, "requests", self.requests_per_s)

    def rows(self, count: int) -> None:
        """Takes `count` rows, of a request that was taken before. One of more than a second's worth passes once the
        bucket is full. What is refused here gets its place among the requests back: when it returns it is let in by
        both bounds.
        """
        if self.rows_per_s:
            now = self._now()
            have = min(1.0, self._rows + now - self._rows_at)
            self._rows_at, self._rows = now, have
            needed = count / self.rows_per_s
            try:
                self._rows = _taken(have, needed, min(needed, 1.0), "rows", self.rows_per_s)
            except RateLimited:
                if self.requests_per_s:
                    self._requests += 1 / self.requests_per_s
                raise


def _taken(have: float, needed: float, enough: float, what: str, rate: float) -> float:
    """What is left, below 0 where less is `enough` than `needed`. Raises RateLimited with the time until it is there."""
    if have + 1e-9 >= enough:
        return have - needed
    raise RateLimited(f"This key may send {rate:g} {what} a second", retry_after_s=max(enough - have, 0.001))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: `id` is the sticky key ("" for the anonymous), `endpoints` what the caller may reach.

    expires_at_unix_s: until when the credential is good. user, source: of the platform's own tokens, whom and what part
    of the platform it was made for.
    """

    id: str
    endpoints: frozenset[str]
    limiter: Limiter | None = None
    expires_at_unix_s: float = float("inf")
    user: str = ""
    source: str = ""

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

    def __init__(
        self,
        table: RoutingTable,
        *,
        now: Callable[[], float] = time.time,
        limiters: dict[str, Limiter] | None = None,
        used: set[str] | None = None,
    ) -> None:
        """used: takes the id of every key that opened a door."""
        self._now = now
        self._used: set[str] = set() if used is None else used
        self._limiters: dict[str, Limiter] = {} if limiters is None else limiters
        self._token_secret = table.token_secret.encode()
        self._keys = {
            key.id: _Key(
                key.digest,
                self._caller_of(key),
                key.expires_at_unix_s if key.expires_at_unix_s is not None else float("inf"),
            )
            for key in table.keys
        }
        for gone in self._limiters.keys() - self._keys.keys():
            del self._limiters[gone]

    def _caller_of(self, key: KeyRoute) -> Caller:
        limiter = None
        if key.requests_per_s or key.rows_per_s:
            limiter = self._limiters.setdefault(key.id, Limiter()).set(key.requests_per_s, key.rows_per_s)
        expires = key.expires_at_unix_s if key.expires_at_unix_s is not None else float("inf")
        return Caller(key.id, frozenset(key.endpoints), limiter, expires)

    def caller(self, credential: str) -> Caller:
        """Whose credential this is. Raises Unauthenticated, in the same words for every reason."""
        if len(credential) <= MAX_CREDENTIAL_CHARS:
            known = self._token(credential) if credential.startswith(TOKEN_PREFIX) else self._key(credential)
            if known is not None:
                return known
        raise Unauthenticated

    @property
    def token_secret(self) -> bytes:
        """What the platform's own tokens and the ids for feedback are signed with; empty where it is not known here."""
        return self._token_secret

    def knows(self, key: str) -> bool:
        """Whether there is a key of this id."""
        return key in self._keys

    def _key(self, credential: str) -> Caller | None:
        name, _, secret = credential.partition(".")
        key = self._keys.get(name[len(KEY_PREFIX) :]) if name.startswith(KEY_PREFIX) else None
        digest = sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        same = hmac.compare_digest(digest, key.digest if key else _NO_DIGEST)
        if key is None or not same or key.expires_at_unix_s <= self._now():
            return None
        self._used.add(key.caller.id)
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
        return Caller(f"user:{token.u}", frozenset({token.e}), None, token.exp, str(token.u), token.s)


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


def has_room(total: int, limit: int, mine: int, keys: int) -> bool:
    """Whether one more request of a key that has `mine` of `total` under way may enter, where `keys` keys are active.

    Half of the room is anybody's. In the other half a key gets no more than an equal share, and in the last sixteenth
    no more than if one key more were active: a flood of one key sheds its own requests and leaves room for others, also
    for one that comes when the flood is there already. Queues of fewer than 16 have no such last part.
    """
    if total >= limit:
        return False
    if total < limit // 2:
        return True
    sharers = max(keys, 1) + (total >= limit - limit // 16)
    return mine < max(1, limit // sharers)


class Queue:
    """Requests under way for one endpoint, by key, with its retry budget. It outlives routing tables."""

    __slots__ = ("_emptying", "_now", "_of_key", "in_flight", "retries")

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._emptying = Emptying()
        self.in_flight = 0
        self.retries = Bucket()
        self._of_key: dict[str, int] = {}

    def enter(self, limit: int, caller: Caller = ANONYMOUS) -> None:
        """Raises at once: RateLimited, or Overloaded when `limit` requests are under way or this key has its share."""
        of_key = self._of_key
        mine = of_key.get(caller.id, 0)
        if not has_room(self.in_flight, limit, mine, len(of_key) + (not mine)):
            empty_in_s = self._emptying.empty_in_s(self.in_flight, self._now())
            raise Overloaded(retry_after_s=retry_after_s(empty_in_s))
        if caller.limiter is not None:
            caller.limiter.request()
        of_key[caller.id] = mine + 1
        if not self.in_flight:
            self._emptying.began(self._now())
        self.in_flight += 1
        self.retries.earn()

    def leave(self, key: str = "") -> None:
        self.in_flight -= 1
        self._emptying.left(self._now)
        left = self._of_key.get(key, 1) - 1
        if left:
            self._of_key[key] = left
        else:
            self._of_key.pop(key, None)
