"""One attempt to tell a receiver: signed, to a judged address, within DEADLINE_S, without following anything.

The header `X-Serinus-Signature: t=<unix s>,v1=<hex>` holds the HMAC-SHA256 of "<t>.<body>" under the webhook's secret,
so a receiver knows who sent it and, by t, that it is no old one sent again.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
import time
from dataclasses import dataclass

import httpx

from inference.errors import SerinusError
from rollouts.webhook_targets import Refused, resolve

DEADLINE_S = 5.0
MAX_ANSWER_BYTES = 4096
EXCERPT_CHARS = 500
SIGNATURE = "X-Serinus-Signature"


@dataclass(frozen=True, slots=True)
class Letter:
    """What is sent: id is the delivery's, the same for each attempt, so that a receiver knows doubles."""

    id: str
    url: str
    secret: str
    event: str
    body: str


@dataclass(frozen=True, slots=True)
class Answered:
    """status: None without an answer; response: the beginning of what was said, or why there was no answer."""

    status: int | None
    response: str
    took_ms: float

    @property
    def is_fine(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def signature(secret: str, body: str, at_unix_s: int) -> str:
    """The header's value."""
    mark = hmac.new(secret.encode(), f"{at_unix_s}.{body}".encode(), hashlib.sha256).hexdigest()
    return f"t={at_unix_s},v1={mark}"


async def send(letter: Letter, *, allow_private: bool, deadline_s: float = DEADLINE_S) -> Answered:
    """Never raises: whatever goes wrong is an answer without status."""
    begun = time.monotonic()
    try:
        async with asyncio.timeout(deadline_s):
            status, said = await _send(letter, allow_private=allow_private)
    except TimeoutError:
        status, said = None, f"no answer within {deadline_s:g} s"
    except (Refused, SerinusError) as refusal:
        status, said = None, str(refusal)
    except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError, ValueError) as error:
        status, said = None, f"it cannot be reached: {type(error).__name__}"
    return Answered(status, said[:EXCERPT_CHARS], round((time.monotonic() - begun) * 1e3, 1))


async def _send(letter: Letter, *, allow_private: bool) -> tuple[int, str]:
    target = await resolve(letter.url, allow_private=allow_private)
    headers = {
        "Host": target.host,
        "Content-Type": "application/json",
        "User-Agent": "Serinus-Webhook/1",
        "X-Serinus-Event": letter.event,
        "X-Serinus-Delivery": letter.id,
        SIGNATURE: signature(letter.secret, letter.body, int(time.time())),
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    extensions = {"sni_hostname": target.name}
    async with (
        httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=DEADLINE_S) as client,
        client.stream(
            "POST", target.url, content=letter.body.encode(), headers=headers, extensions=extensions
        ) as answer,
    ):
        if answer.is_redirect:
            return answer.status_code, "it answered by a redirect, which is not followed"
        return answer.status_code, await _beginning(answer)


async def _beginning(answer: httpx.Response) -> str:
    held = b""
    async for part in answer.aiter_raw():
        held += part
        if len(held) >= MAX_ANSWER_BYTES:
            break
    return held[:MAX_ANSWER_BYTES].decode("utf-8", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")
