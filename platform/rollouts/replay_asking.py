"""One recorded request asked again of a pinned version, through a gateway, with a token of the platform's own.

Tensors go as they were recorded, through the Open Inference Protocol; what a language model was asked goes through
OpenAI's API. The token's source is "replay" and the version is pinned, so nothing here is judged as traffic.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx

from endpoints.tokens import make_token
from inference.client import Client
from inference.errors import NotReady, Overloaded, SerinusError, by_code
from inference.protocol import generation, records
from inference.protocol.compare import Compared, Output, OutputCompared, compare
from inference.protocol.excerpts import excerpt
from inference.protocol.messages import TensorHeader
from inference.protocol.records import Record
from inference.protocol.routes import Comparison
from inference.protocol.shadows import MAX_REQUEST_CHARS
from rollouts.replay_chats import chat_body, choice_text
from rollouts.replay_report import Asked

ONE_S = 10.0
TRIES = 3
PAUSE_S = 0.5
MAX_ELEMENTS, MAX_BYTES = 65_536, 256 << 10


class Asker:
    """Asks version `number` behind `endpoint` through the gateway at `url`. Used by several threads at once.

    Its token lives for a minute: an asker is made anew for each slice, which is shorter.
    """

    def __init__(self, endpoint: str, number: int, *, url: str, secret: str, how: Comparison) -> None:
        token = make_token(secret, user="serinus", endpoint=endpoint, source="replay")
        self._endpoint, self._number, self._how = endpoint, number, how
        self._client = Client(url, token, timeout_s=ONE_S)
        self._http = httpx.Client(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=ONE_S + 2, trust_env=False
        )

    def close(self) -> None:
        self._client.close()
        self._http.close()

    def is_ready(self) -> bool:
        return self._client.ready(self._endpoint, version=self._number)

    def ask(self, row: int, record: Record) -> Asked:
        """Never raises for what the gateway or the version answers."""
        before_ms = record.latency_ms
        body = chat_body(record, f"{self._endpoint}@{self._number}") if record.kind == records.LANGUAGE else None
        if record.kind == records.LANGUAGE and body is None:
            return Asked(row, skipped="it cannot be asked through a public API")
        parts = _parts(record.tensors, record.body)
        shown = excerpt(record.tensors, parts, MAX_REQUEST_CHARS)
        began = time.monotonic()
        try:
            found, began = self._patiently(record, parts, body)
        except SerinusError as error:
            took_ms = round((time.monotonic() - began) * 1e3, 3)
            detail = error.message[:200]
            return Asked(row, before_ms, took_ms, error=error.code, detail=detail, request=shown)
        took_ms = round((time.monotonic() - began) * 1e3, 3)
        if not record.is_repeatable:
            return Asked(row, before_ms, took_ms)
        return _told(Asked(row, before_ms, took_ms, request=shown), self._compared(record, found))

    def _compared(self, record: Record, found: list[Output]) -> Compared:
        kept = outputs_of(record.answer, record.answer_body)
        if [output.name for output in kept] == ["text"] and found and found[0].name == generation.TEXT_OUTPUT:
            found = [found[0]._replace(name="text")]
        kept = [output for output in kept if output.name != "token_ids"] if record.kind == records.LANGUAGE else kept
        return compare(kept, found, self._how, most_elements=MAX_ELEMENTS, most_bytes=MAX_BYTES)

    def _patiently(
        self, record: Record, parts: Sequence[memoryview], body: dict[str, Any] | None
    ) -> tuple[list[Output], float]:
        """The answer, and when the try that got it began. Raises the SerinusError that it got last."""
        for tried in range(TRIES):
            began = time.monotonic()
            try:
                return self._once(record, parts, body), began
            except (NotReady, Overloaded):
                if tried == TRIES - 1:
                    raise
                time.sleep(PAUSE_S * 2**tried)
        raise AssertionError

    def _once(self, record: Record, parts: Sequence[memoryview], body: dict[str, Any] | None) -> list[Output]:
        if body is not None:
            return self._said(body)
        tensors = [
            Output(tensor.name, tensor.datatype, tensor.shape, part)
            for tensor, part in zip(record.tensors, parts, strict=True)
        ]
        found = self._client.infer_bytes(
            self._endpoint, tensors, version=self._number, parameters=record.parameters, timeout_s=ONE_S
        )
        return [output for output in found if not record.outputs or output.name in record.outputs]

    def _said(self, body: dict[str, Any]) -> list[Output]:
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        try:
            response = self._http.post(path, json=body)
        except httpx.HTTPError as error:
            raise NotReady("The gateway cannot be reached") from error
        if response.status_code != httpx.codes.OK:
            raise _error(response)
        texts = [choice_text(choice) for choice in sorted(response.json()["choices"], key=lambda one: one["index"])]
        raw = [text.encode("utf-8", "replace") for text in texts]
        return [Output("text", "BYTES", [len(raw)], b"".join(len(one).to_bytes(4, "little") + one for one in raw))]


def outputs_of(tensors: Sequence[TensorHeader], body: bytes) -> list[Output]:
    return [
        Output(tensor.name, tensor.datatype, tensor.shape, part)
        for tensor, part in zip(tensors, _parts(tensors, body), strict=True)
    ]


def _error(response: httpx.Response) -> SerinusError:
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the gateway answered with status {response.status_code}"
    known = {429: "overloaded", 503: "not_ready", 404: "not_found", 400: "invalid_input", 504: "deadline_exceeded"}
    code = response.headers.get("x-error-code") or known.get(response.status_code, "internal")
    try:
        return by_code(code)(message)
    except TypeError:
        return SerinusError(message)


def _told(asked: Asked, found: Compared) -> Asked:
    """With what the comparison says."""
    worst = max(found.outputs, key=lambda output: output.distance, default=OutputCompared("", "", 0.0))
    return replace(
        asked,
        distance=found.distance,
        is_drift=found.is_drift,
        output=worst.name[:256],
        kind=worst.kind,
        detail=worst.detail,
    )


def _parts(tensors: Sequence[TensorHeader], body: bytes) -> list[memoryview]:
    view, at, found = memoryview(body), 0, []
    for tensor in tensors:
        found.append(view[at : at + tensor.size_bytes])
        at += tensor.size_bytes
    return found
