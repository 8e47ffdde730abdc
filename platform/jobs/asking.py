"""One line to the gateway and back: with a token for its model alone, at low priority, bounded in time and size.

What comes of it is one of three: a record (the line is done, well or not), a refusal (no room now: the line waits), or a
break (the line is tried again a few times, then what is known of it is its record).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import httpx
import msgspec

from endpoints.tokens import make_token
from jobs.finalizing import record
from jobs.limits import LINE_TIMEOUT_S, MAX_ANSWER_BYTES, MAX_INFLIGHT, PRIORITY
from jobs.lines import Line, parse
from jobs.models import Batch

SOURCE = "batch"
CONNECT_S = 5.0
REFUSALS = {429, 503}
BREAKS = {408, 409, 425, 500, 502, 504}
GENERATES = {"/v1/chat/completions", "/v1/completions", "/v1/responses"}


@dataclass(frozen=True, slots=True)
class Record:
    """The line of the output (ok) or error file that tells what came of it, with its newline."""

    data: bytes
    ok: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """The gateway has no room for it now, or is away."""

    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Broken:
    """No answer, or none of the model's; `last`: what to write if no try is left."""

    last: Record


Outcome = Record | Refused | Broken


class Asker:
    """Asks for the lines of one batch. reach: names of the endpoints that they may call."""

    def __init__(self, batch: Batch, *, url: str, secret: str, reach: frozenset[str]) -> None:
        self._batch, self._secret, self._reach = batch, secret, reach
        limits = httpx.Limits(max_connections=MAX_INFLIGHT, max_keepalive_connections=MAX_INFLIGHT)
        timeout = httpx.Timeout(LINE_TIMEOUT_S, connect=CONNECT_S)
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout, limits=limits, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, line: Line) -> Outcome:
        request = parse(line.data)
        model = str(request.body["model"])
        endpoint = self._endpoint_of(model)
        if endpoint is None:
            error = {"message": f"The model '{model}' does not exist, or this batch's key may not call it.",
                     "type": "invalid_request_error", "param": "model", "code": "model_not_found"}  # fmt: skip
            return Record(self._answered(line, request.custom_id, 404, "", {"error": error}), ok=False)
        try:
            status, headers, data = await self._send(line, request.body, endpoint)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
            return Refused(None)
        except httpx.TimeoutException:
            return Broken(self._failed(line, request.custom_id, "request_timeout", "The model did not answer in time."))
        except (httpx.HTTPError, _TooLong) as error:
            told = "The answer was too long." if isinstance(error, _TooLong) else "The connection was lost."
            return Broken(self._failed(line, request.custom_id, "server_error", told))
        return self._judge(line, request.custom_id, status, headers, data)

    def _endpoint_of(self, model: str) -> str | None:
        """The endpoint that a model's name calls: its own name, or what stands before a colon (an adapter's name)."""
        for name in (model, model.partition(":")[0]):
            if name in self._reach:
                return name
        return None

    async def _send(self, line: Line, body: dict[str, Any], endpoint: str) -> tuple[int, httpx.Headers, bytes]:
        token = make_token(self._secret, user=self._batch.owner, endpoint=endpoint, source=SOURCE)
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "X-Request-Id": f"{self._batch.public_id}-{line.number}",
            "X-Request-Timeout-Ms": str(int(LINE_TIMEOUT_S * 1e3)),
            "X-Priority": str(PRIORITY),
        }
        if self._batch.endpoint in GENERATES:
            given = body.get("priority")
            body["priority"] = max(PRIORITY, given) if isinstance(given, int) else PRIORITY
        data = json.dumps(body, separators=(",", ":")).encode()  # msgspec writes no number beyond 64 bits
        async with self._http.stream("POST", self._batch.endpoint, content=data, headers=headers) as answer:
            found = bytearray()
            async for piece in answer.aiter_bytes():
                found += piece
                if len(found) > MAX_ANSWER_BYTES:
                    raise _TooLong
            return answer.status_code, answer.headers, bytes(found)

    def _judge(self, line: Line, custom_id: str, status: int, headers: httpx.Headers, data: bytes) -> Outcome:
        if status in REFUSALS:
            return Refused(retry_after(headers))
        body, read = _body(data)
        written = self._answered(line, custom_id, status, headers.get("x-request-id", ""), body)
        if status == httpx.codes.OK and read:
            return Record(written, ok=True)
        final = headers.get("x-should-retry") == "false"
        broken = (status in BREAKS or status < 400) and not final
        return Broken(Record(written, ok=False)) if broken else Record(written, ok=False)

    def _answered(self, line: Line, custom_id: str, status: int, request_id: str, body: object) -> bytes:
        name = request_id or f"{self._batch.public_id}-{line.number}"
        response = {"status_code": status, "request_id": name, "body": body}
        return record(self._batch, line.number, custom_id, response=response)

    def _failed(self, line: Line, custom_id: str, code: str, message: str) -> Record:
        return Record(record(self._batch, line.number, custom_id, error={"code": code, "message": message}), ok=False)


class _TooLong(Exception):
    """More came than an answer may have."""


def _body(data: bytes) -> tuple[object, bool]:
    """(the answer's object, whether it is one); words that are no object, in an error's shape."""
    try:
        found = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found, True
    words = data[:500].decode("utf-8", "replace") or "The gateway answered nothing."
    return {"error": {"message": words, "type": "server_error", "param": None, "code": None}}, False


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds that the answer asks to wait; None when it does not say."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return None
