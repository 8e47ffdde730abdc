"""The first requests to a candidate: the model's golden inputs, sent through a gateway to the pinned version.

Law: it never raises and never lasts longer than TOTAL_S; whatever goes wrong is a report that did not pass and says why.
Its requests carry a token of the platform's own with source "smoke", so that nothing here is judged as traffic.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import msgspec
from django.conf import settings as django_settings

from endpoints.models import Endpoint
from endpoints.publish import token_secret
from endpoints.tokens import make_token
from inference.client import Client
from inference.errors import NotFound, NotReady, Overloaded, SerinusError
from inference.protocol import generation
from inference.protocol.compare import Output, compare
from inference.protocol.oip import Signature
from inference.protocol.routes import Comparison
from inference.protocol.settings import RuntimeSettings
from inference.protocol.signatures import public_signature
from registry.models import GoldenInput, Version
from rollouts.packing import broken_values, example, packed

TOTAL_S = 60.0
ONE_S = 30.0
# A gateway may know the new replica a second after this process does.
READY_S = 15.0
PAUSE_S = 0.25
# Sizes of free dimensions as validation tries them.
FREE_SIZES = (16, 1, 64, 224)
NOT_SAVED = "No golden inputs are saved for this model"
MAX_WORDS = 900
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SmokeCase:
    """One request. distance: of the answer from the right one, 0 to 1, None where there is no right one."""

    name: str
    passed: bool
    words: str
    distance: float | None = None
    took_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class SmokeReport:
    """words: one or two sentences for the event log."""

    passed: bool
    words: str
    cases: tuple[SmokeCase, ...] = ()

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "cases": [asdict(case) for case in self.cases]}


def smoke(endpoint: Endpoint, version: Version, *, gateway_url: str = "", total_s: float = TOTAL_S) -> SmokeReport:
    """Asks `version` behind `endpoint` its model's golden inputs, or, where none is saved, one request made from its
    signature, whose answer must be free of NaN. gateway_url: "" for that of the settings.
    """
    try:
        with _Asking(endpoint, version, gateway_url or django_settings.GATEWAY_URL, total_s) as asking:
            rows = list(GoldenInput.objects.filter(model=version.model_id).order_by("name"))
            return _golden(asking, rows) if rows else _unguided(asking, version)
    except Exception:
        log.exception("the smoke test of %s at %s failed", version, endpoint.name)
        return SmokeReport(False, "The smoke test itself failed; the log of the control worker has more.")


class _Asking:
    """One version of an endpoint through one gateway, until the time is over."""

    def __init__(self, endpoint: Endpoint, version: Version, url: str, total_s: float) -> None:
        self._endpoint, self._version = endpoint.name, version.number
        self._until = time.monotonic() + total_s
        self._ready_until = time.monotonic() + min(READY_S, total_s)
        self._url = url
        self._client: Client | None = None
        self._made = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

    @property
    def left_s(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def ask(self, tensors: Sequence[Output], parameters: Mapping[str, Any]) -> tuple[list[Output], float]:
        """The answer, and how long it took in ms. Asks again while the gateway does not know the replica yet. Raises
        the SerinusError that it got last.
        """
        while True:
            begun = time.monotonic()
            try:
                answer = self._fresh_client().infer_bytes(
                    self._endpoint, tensors, version=self._version, parameters=parameters,
                    timeout_s=max(0.05, min(ONE_S, self.left_s)),
                )  # fmt: skip
            except (NotFound, NotReady, Overloaded):
                if time.monotonic() + PAUSE_S >= min(self._ready_until, self._until):
                    raise
                time.sleep(PAUSE_S)
            else:
                return answer, (time.monotonic() - begun) * 1e3

    def _fresh_client(self) -> Client:
        """A token lives for a minute: one made long ago is made anew."""
        if self._client is None or time.monotonic() - self._made > ONE_S / 2:
            if self._client is not None:
                self._client.close()
            token = make_token(token_secret(), user="serinus", endpoint=self._endpoint, source="smoke")
            self._client, self._made = Client(self._url, token, timeout_s=ONE_S), time.monotonic()
        return self._client


def _golden(asking: _Asking, rows: list[GoldenInput]) -> SmokeReport:
    cases = tuple(_case(asking, row) for row in rows)
    failed = [case for case in cases if not case.passed]
    if not failed:
        worst = max(case.distance or 0.0 for case in cases)
        return SmokeReport(
            True, f"{_counted(len(cases))} answered as they should be, at most {worst:.3g} apart.", cases
        )
    named = "; ".join(f"{case.name}: {case.words}" for case in failed[:3])
    more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
    return SmokeReport(False, f"{len(failed)} of {_counted(len(cases))} failed. {named}{more}"[:MAX_WORDS], cases)


def _counted(count: int) -> str:
    return f"{count} golden input{'' if count == 1 else 's'}"


def _case(asking: _Asking, row: GoldenInput) -> SmokeCase:
    if not asking.left_s:
        return SmokeCase(row.name, False, "there was no time left to ask it")
    try:
        inputs, expected = [packed(one) for one in row.inputs], [packed(one) for one in row.outputs]
        answer, took_ms = asking.ask(inputs, row.parameters)
    except (SerinusError, ValueError) as error:
        return SmokeCase(row.name, False, _told(error))
    found = compare(expected, answer, Comparison(row.comparison, row.tolerance, row.k))
    if not found.is_drift:
        return SmokeCase(row.name, True, "", found.distance, took_ms)
    worst = max(found.outputs, key=lambda one: one.distance)
    words = f"output '{worst.name}' is {worst.distance:.3g} apart ({worst.kind}), {row.tolerance:g} is allowed"
    return SmokeCase(row.name, False, f"{words}: {worst.detail}" if worst.detail else words, found.distance, took_ms)


def _unguided(asking: _Asking, version: Version) -> SmokeReport:
    """No right answer is known: one request must be answered, and without NaN."""
    signature = msgspec.convert(version.signature, Signature)
    settings = msgspec.convert(version.settings, RuntimeSettings)
    if settings.decoupled:
        return SmokeReport(True, f"{NOT_SAVED}, and it answers by streams, so nothing was asked.")
    case = _example_case(asking, public_signature(signature, settings), settings)
    if case.passed:
        return SmokeReport(True, f"{NOT_SAVED}; a request made from its signature was answered.", (case,))
    return SmokeReport(
        False, f"{NOT_SAVED}; a request made from its signature failed: {case.words}"[:MAX_WORDS], (case,)
    )


def _example_case(asking: _Asking, signature: Signature, settings: RuntimeSettings) -> SmokeCase:
    """The first size of free dimensions that the model takes counts."""
    name, said = "from the signature", ""
    for tensors in _examples(signature):
        if not asking.left_s:
            break
        try:
            answer, took_ms = asking.ask(tensors, _parameters(signature, settings))
        except (SerinusError, ValueError) as error:
            said = said or _told(error)
            continue
        broken = {output.name: count for output in answer if (count := broken_values(output))}
        if not broken:
            return SmokeCase(name, True, "", None, took_ms)
        output, count = next(iter(broken.items()))
        return SmokeCase(name, False, f"output '{output}' has {count} values that are NaN or infinite", None, took_ms)
    return SmokeCase(name, False, said or "there was no time left to ask it")


def _examples(signature: Signature) -> Iterator[list[Output]]:
    batched = bool(signature.max_batch_size)
    free = any(-1 in spec.shape[1 if batched else 0 :] for spec in signature.inputs)
    for size in FREE_SIZES if free else FREE_SIZES[:1]:
        yield example(signature, size)


def _parameters(signature: Signature, settings: RuntimeSettings) -> dict[str, Any]:
    if settings.generation is not None or signature.platform == generation.PLATFORM:
        return {"temperature": 0.0, "max_tokens": 8}
    if settings.sequence is not None:
        return {"sequence_id": f"smoke-{time.time_ns()}", "sequence_start": True, "sequence_end": True}
    return {}


def _told(error: Exception) -> str:
    return error.message if isinstance(error, SerinusError) else str(error)
