"""The signed ids under which the scores of answers come back.

An id is made only where a rollout steers the endpoint, so nobody else pays for it. It says which endpoint, version and
arm answered and in which second, and is signed, so that a gateway which has never seen the request can count its score:
no request is remembered.
"""

from __future__ import annotations

import base64
import hmac
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b, sha256
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.gateway.flights import Flight
    from inference.gateway.table import Table

HEADER = b"x-feedback-id"
# After the endpoint's name: version, arm, second, number, mark.
FORM = r"\.[0-9]{1,9}\.[a-z0-9]{1,16}\.[0-9a-f]{1,12}\.[0-9a-f]{1,24}\.[A-Za-z0-9_-]{16}"
_MARK_BYTES = 12
_ARMS = {"primary": "p", "canary": "c", "shadow": "s", "pinned": "n", "playground": "g"}
_NAMES = {letter: name for name, letter in _ARMS.items()}


@dataclass(frozen=True, slots=True)
class Told:
    """What an id says. second: unix time of the answer; mark: its signature."""

    endpoint: str
    version: int
    arm: str
    second: int
    mark: str


def sign(secret: bytes, text: str) -> str:
    """The mark under `text`, URL-safe. BLAKE2b with a key is a MAC (RFC 7693); `person` keeps it from all other uses."""
    key = secret if len(secret) <= 64 else sha256(secret).digest()
    digest = blake2b(text.encode(), key=key, digest_size=_MARK_BYTES, person=b"serinus-feedback").digest()
    return base64.urlsafe_b64encode(digest).decode()


def read(secret: bytes, identity: str) -> Told | None:
    """What an id says; None for one that was not signed with this secret."""
    text, _, mark = identity.rpartition(".")
    parts = text.rsplit(".", 4)
    if not secret or len(parts) != 5 or not hmac.compare_digest(sign(secret, text).encode(), mark.encode()):
        return None
    endpoint, version, arm, second, _ = parts
    return Told(endpoint, int(version), _NAMES.get(arm, arm), int(second, 16), mark)


class FeedbackIds:
    """Makes ids. ENDPOINT.VERSION.ARM.SECOND.NUMBER.MARK: an endpoint's name may hold points, the others hold none."""

    def __init__(self, table: Table, now: Callable[[], float] = time.time) -> None:
        self._table = table
        self._now = now
        self._boot = os.urandom(4).hex()
        self._numbers = count(1)

    def of(self, flight: Flight) -> str:
        """The id of this request's answer, always the same; "" where no rollout asks for scores."""
        if flight.endpoint.route.steering is None:
            return ""
        if not flight.feedback:
            secret = self._table.now.keys.token_secret
            if not secret:
                return ""
            endpoint, version, arm = flight.variant.key
            number = f"{self._boot}{next(self._numbers):x}"
            text = f"{endpoint}.{version}.{_ARMS.get(arm, arm)}.{int(self._now()):x}.{number}"
            flight.feedback = f"{text}.{sign(secret, text)}"
        return flight.feedback
