"""What a call's metadata say: who calls, how long it may take, to whom it sticks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from inference.errors import InvalidInput
from inference.gateway.predict import MAX_TIMEOUT_MS

_BEARER = "bearer "


@dataclass(slots=True)
class Head:
    """timeout_ms: the shorter of `x-request-timeout-ms` and the call's deadline, 0 without either. version: of
    `x-model-version`, None without it. asked_timeout_ms: of `x-request-timeout-ms` alone.
    """

    credential: str
    timeout_ms: int = 0
    session: str = ""
    traceparent: str = ""
    tracestate: str = ""
    is_strict: bool = False
    version: str | None = None
    metadata: Sequence[tuple[str, str | bytes]] = ()
    asked_timeout_ms: int = 0

    def without_deadline(self) -> Head:
        """The same, but for `timeout_ms`, which is what `x-request-timeout-ms` says alone."""
        return replace(self, timeout_ms=self.asked_timeout_ms)

    @property
    def trace(self) -> tuple[str, str]:
        return self.traceparent, self.tracestate

    def headers(self) -> dict[bytes, bytes]:
        """The metadata as HTTP's doors have their headers."""
        return {
            name.encode(): value if isinstance(value, bytes) else value.encode("latin-1", "replace")
            for name, value in self.metadata
        }


def credential_of(metadata: Sequence[tuple[str, str | bytes]]) -> str:
    """The API key or token that a call carries, "" without any."""
    other = ""
    for name, value in metadata:
        if name == "authorization" and isinstance(value, str):
            return value[len(_BEARER) :].strip() if value[: len(_BEARER)].lower() == _BEARER else value
        if name == "x-api-key" and isinstance(value, str):
            other = value
    return other


def read(metadata: Sequence[tuple[str, str | bytes]], remaining_s: float | None) -> Head:
    """remaining_s: until the deadline that the caller set, None without one. Raises InvalidInput."""
    given: dict[str, Any] = dict(metadata)  # bytes only where a name ends in "-bin", which none of these does
    head = Head(credential_of(metadata), metadata=metadata)
    if "x-request-timeout-ms" in given:
        head.timeout_ms = head.asked_timeout_ms = _timeout_ms(given["x-request-timeout-ms"])
    if remaining_s is not None:
        left_ms = max(1, int(min(remaining_s * 1e3, MAX_TIMEOUT_MS)))
        head.timeout_ms = min(head.timeout_ms, left_ms) if head.timeout_ms else left_ms
    if len(given) > 1:
        head.session = given.get("x-session-id", "")
        head.traceparent = given.get("traceparent", "")
        if head.traceparent:
            head.tracestate = ",".join(
                value for name, value in metadata if name == "tracestate" and isinstance(value, str)
            )
        head.version = given.get("x-model-version")
        head.is_strict = given.get("triton_grpc_error", "").lower() == "true"
    return head


def _timeout_ms(given: str) -> int:
    if not (given.isascii() and given.isdigit()) or len(given) > 9 or not 1 <= int(given) <= MAX_TIMEOUT_MS:
        raise InvalidInput("x-request-timeout-ms must be a whole number of milliseconds, at least 1")
    return int(given)
