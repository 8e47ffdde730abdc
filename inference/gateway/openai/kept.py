"""Responses that were stored: in this process's memory, and in Valkey for the other gateways, bounded in number, bytes and
time in both.

The law: Valkey never fails what this gateway can do alone. Making a response, and going on with one that was made here,
wait a tenth of a second for it at most, and after a failure not at all for a while. What this gateway has not made needs
it, and is NotReady without it. What was deleted at one gateway is gone at all: Valkey's word comes before the memory's.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from redis.exceptions import RedisError

from inference.errors import NotFound, NotReady

MAX_KEPT = 4096
MAX_KEPT_BYTES = 64 << 20
KEPT_S = 3600.0
MAX_SHARED_BYTES = 1 << 20
MAX_ID = 200
WAIT_S, ASK_S, PAUSE_S = 0.1, 1.0, 5.0
PREFIX = "serinus:responses:"
_GONE = b""
_decode = msgspec.msgpack.Decoder(tuple[bytes, bytes]).decode
_log = logging.getLogger(__name__)
T = TypeVar("T")

# Entries lie under PREFIX + OWNER + ":" + ID. What may be dropped stands in two sorted sets by the time it came (one of
# each owner, one of all) as "SIZE OWNER ID", and how much there is in a hash by owner, "*" for all. An owner fills a
# quarter at most, so that nobody drives out everybody else's.
_DROP = """
local prefix, owner, id, kept = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local key, all, sums = prefix .. owner .. ':' .. id, prefix .. 'order', prefix .. 'bytes'
local function order_of(whose) return prefix .. 'order:' .. whose end
local function drop(member)
  local size, whose, name = string.match(member, '^(%d+) (%S+) (%S+)$')
  redis.call('ZREM', order_of(whose), member)
  if redis.call('ZREM', all, member) == 0 then return end
  redis.call('HINCRBY', sums, whose, '-' .. size)
  redis.call('HINCRBY', sums, '*', '-' .. size)
  redis.call('UNLINK', prefix .. whose .. ':' .. name)
end
"""
_PUT = (
    _DROP
    + """
local value, most = ARGV[5], tonumber(ARGV[6])
local function shrink(set, sum, bound)
  while tonumber(redis.call('HGET', sums, sum) or 0) > bound do
    local oldest = redis.call('ZRANGE', set, 0, 0)
    if not oldest[1] then return end
    drop(oldest[1])
  end
end
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local over = redis.call('ZRANGEBYSCORE', all, '-inf', now - kept * 1000000, 'LIMIT', 0, 1000)
for _, member in ipairs(over) do drop(member) end
local member = #value .. ' ' .. owner .. ' ' .. id
redis.call('SET', key, value, 'EX', kept)
redis.call('ZADD', all, now, member)
redis.call('ZADD', order_of(owner), now, member)
redis.call('HINCRBY', sums, owner, #value)
redis.call('HINCRBY', sums, '*', #value)
shrink(order_of(owner), owner, most / 4)
shrink(all, '*', most)
for _, one in ipairs({order_of(owner), all, sums}) do redis.call('EXPIRE', one, kept + 60) end
return 1
"""
)
# What says "gone" to gateways that have it in their memory lies there as long as they would have it.
_DELETE = (
    _DROP
    + """
local size = redis.call('STRLEN', key)
if size > 0 then drop(size .. ' ' .. owner .. ' ' .. id) end
redis.call('SET', key, '', 'EX', kept)
return 1
"""
)


@dataclass(frozen=True, slots=True)
class Kept:
    """A response's JSON and its conversation as JSON, without instructions."""

    shown: bytes
    messages: bytes
    until: float

    @property
    def size(self) -> int:
        return len(self.shown) + len(self.messages)


class Store:
    """Responses by caller and id; the oldest go first. now: seconds of a clock that does not jump."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._now = now
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, caller: str, identity: str, shown: bytes, messages: bytes) -> None:
        """What is larger than all that may be kept is not."""
        found = Kept(shown, messages, self._now() + KEPT_S)
        if found.size > self._max_bytes:
            return
        self._kept[caller, identity] = found
        self.size_bytes += found.size
        while self.size_bytes > self._max_bytes or len(self._kept) > MAX_KEPT or self._is_oldest_over():
            _, gone = self._kept.popitem(last=False)
            self.size_bytes -= gone.size

    def _is_oldest_over(self) -> bool:
        return next(iter(self._kept.values())).until <= self._now()

    def find(self, caller: str, identity: str) -> Kept | None:
        found = self._kept.get((caller, identity))
        return found if found is not None and found.until > self._now() else None

    def forget(self, caller: str, identity: str) -> None:
        found = self._kept.pop((caller, identity), None)
        self.size_bytes -= found.size if found is not None else 0


def missing(identity: str) -> NotFound:
    return NotFound(f"Response with id '{identity}' not found: it was not stored, or is older than an hour.")


class KeptResponses:
    """The store that a gateway has, and shares. client: Valkey, None without it; most_bytes: of all that lies there, 0 to
    share nothing.
    """

    def __init__(self, client: Any = None, *, most_bytes: int = MAX_KEPT_BYTES, store: Store | None = None) -> None:
        self._client = client if most_bytes else None
        self._most_bytes = most_bytes
        self._own = store if store is not None else Store()
        if self._client is not None:
            self._put, self._delete = (self._client.register_script(one) for one in (_PUT, _DELETE))
        self._asked_again_at = 0.0

    async def put(self, caller: str, identity: str, shown: bytes, messages: bytes) -> None:
        """Keeps it here and, unless it is larger than MAX_SHARED_BYTES, for the others."""
        self._own.put(caller, identity, shown, messages)
        value = msgspec.msgpack.encode((shown, messages))
        if self._client is not None and len(value) <= MAX_SHARED_BYTES:
            arguments = [*_named(caller, identity), value, self._most_bytes]
            await self._or(None, lambda: self._put(args=arguments))

    async def get(self, caller: str, identity: str) -> Kept:
        """Raises NotFound; NotReady where it may be another gateway's, and Valkey does not answer."""
        if len(identity) > MAX_ID:
            raise missing(identity[:MAX_ID])
        own = self._own.find(caller, identity)
        value = await self._shared(caller, identity, must=own is None)
        if value == _GONE:
            self._own.forget(caller, identity)
            raise missing(identity)
        if own is not None:
            return own
        if value is None:
            raise missing(identity)
        try:
            shown, messages = _decode(value)
        except msgspec.MsgspecError as error:  # another version's, or nobody's
            raise missing(identity) from error
        return Kept(shown, messages, 0.0)

    async def _shared(self, caller: str, identity: str, *, must: bool) -> bytes | None:
        """What Valkey has of it, None for nothing."""
        client, key = self._client, f"{PREFIX}{owner_of(caller)}:{identity}"
        if client is None:
            return None
        found: bytes | None = await (
            self._must(lambda: client.get(key)) if must else self._or(None, lambda: client.get(key))
        )
        return found

    async def delete(self, caller: str, identity: str) -> None:
        """Everywhere. Raises NotFound; NotReady where the others cannot be told, and then nothing is deleted."""
        await self.get(caller, identity)
        if self._client is not None:
            await self._must(lambda: self._delete(args=_named(caller, identity)))
        self._own.forget(caller, identity)

    async def _must(self, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            return await asyncio.wait_for(_as_coroutine(ask), ASK_S)
        except (TimeoutError, RedisError, OSError) as error:
            self._failed(error)
            raise NotReady(
                "What gateways share of stored responses cannot be reached now. Try again later.",
                retry_after_s=PAUSE_S,
            ) from error

    async def _or(self, otherwise: T, ask: Callable[[], Awaitable[T]]) -> T:
        """What Valkey says, `otherwise` where it does not say it soon."""
        if time.monotonic() < self._asked_again_at:
            return otherwise
        try:
            return await asyncio.wait_for(_as_coroutine(ask), WAIT_S)
        except (TimeoutError, RedisError, OSError) as error:
            self._failed(error)
            return otherwise

    def _failed(self, error: BaseException) -> None:
        self._asked_again_at = time.monotonic() + PAUSE_S
        _log.warning("stored responses are this gateway's alone for now: %s", type(error).__name__)


async def _as_coroutine(ask: Callable[[], Awaitable[T]]) -> T:
    return await ask()


def _named(caller: str, identity: str) -> list[Any]:
    return [PREFIX, owner_of(caller), identity, int(KEPT_S)]


def owner_of(caller: str) -> str:
    """A caller's id as it stands in Valkey: of one length, without spaces."""
    return hashlib.sha256(caller.encode()).hexdigest()[:32]
