"""What an answer turned out to be worth: the door that takes the score of an answer by its id.

An id counts once: that is remembered here for the newest MAX_KEPT, and in Valkey (where it is) for every gateway and as
long as the id is good. Nothing of this is on a prediction's path.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec
from redis.exceptions import RedisError

from inference.errors import Conflict, InvalidInput, Malformed, NotFound
from inference.gateway.dataplane import DataPlane
from inference.gateway.feedback_ids import Told, read
from inference.gateway.predict import credential_of
from inference.gateway.web import JSON_TYPE, Request, Response

GOOD_S = 86_400
AHEAD_S = 60  # another gateway's clock
MAX_KEPT = 65_536
VALKEY_S = 1.0
KEY = "serinus:feedback:"
_encode = msgspec.json.Encoder().encode
_log = logging.getLogger(__name__)


class Seen:
    """The ids that were counted here: the newest MAX_KEPT."""

    def __init__(self) -> None:
        self._marks: OrderedDict[str, None] = OrderedDict()

    def add(self, mark: str) -> bool:
        """Whether it is new."""
        if mark in self._marks:
            return False
        self._marks[mark] = None
        if len(self._marks) > MAX_KEPT:
            self._marks.popitem(last=False)
        return True


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    score: float


_decode = msgspec.json.Decoder(_Body).decode


class Feedback:
    """Answers `POST /v2/feedback/{id}` with {"score": 0..1}. client: Valkey, None without it."""

    def __init__(self, plane: DataPlane, client: Any = None, now: Callable[[], float] = time.time) -> None:
        self._plane = plane
        self._client = client
        self._now = now
        self._telemetry = plane.telemetry
        self._seen = Seen()

    async def take(self, request: Request) -> Response:
        """1. Who calls, and whether it may use that endpoint; 2. whether the id is one of ours and still good; 3. the
        score; 4. whether it is the id's first; then it is counted, in the second in which it came.
        """
        told = self._told(request)
        score = _score(request.body)
        if not self._seen.add(told.mark) or not await self._is_first(told):
            raise Conflict("this answer has its score already: each counts once")
        self._telemetry.scored((told.endpoint, told.version, told.arm), score)
        body = {"endpoint": told.endpoint, "version": told.version, "arm": told.arm, "score": score}
        return Response(200, [JSON_TYPE], _encode(body))

    def _told(self, request: Request) -> Told:
        """Raises Unauthenticated, Forbidden, NotFound, or InvalidInput for an id that is too old."""
        (identity, name), plane = request.rest, self._plane
        plane.admit(name, credential_of(request.headers))
        told = read(plane.table.now.keys.token_secret, identity)
        if told is None:
            raise NotFound(
                "there is no answer with this id: send the X-Feedback-Id of an answer as it came. Answers have one while "
                "a rollout is active on their endpoint"
            )
        age_s = self._now() - told.second
        if age_s > GOOD_S or age_s < -AHEAD_S:
            raise InvalidInput(f"scores are taken for {GOOD_S // 3600} hours after the answer: this one is older")
        return told

    async def _is_first(self, told: Told) -> bool:
        """Whether no other gateway has counted it; without Valkey, or when it does not answer, nobody else is asked."""
        if self._client is None:
            return True
        try:
            set_now = self._client.set(KEY + told.mark, b"", nx=True, ex=GOOD_S + AHEAD_S)
            return bool(await asyncio.wait_for(set_now, VALKEY_S))
        except (TimeoutError, RedisError, OSError) as error:
            _log.debug("a score is counted without Valkey's word: %s", type(error).__name__)
            return True


def _score(body: bytes | memoryview) -> float:
    try:
        found = _decode(body).score
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Malformed(f'a score comes as {{"score": 0.5}}: {error}') from error
    if not 0 <= found <= 1:
        raise InvalidInput("'score' must be from 0 to 1")
    return found
