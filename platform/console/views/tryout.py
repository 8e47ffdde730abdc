"""One prediction from the endpoint's page, through the gateway like any other client's."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_POST

from accounts.permissions import Verb, actor_of, require
from accounts.problems import STATUS, body
from console.pages import page
from console.playground import make_token
from console.reading import endpoint_named
from endpoints.publish import token_secret
from inference.client import Client, Prediction
from inference.errors import Malformed, SerinusError
from registry import actions
from registry.golden import Golden

TIMEOUT_S = 30.0
MAX_REQUEST_TENSORS = 64
PARTS = ("gateway", "network", "queue", "input", "compute", "output")


@require_POST
@page
def try_it(request: HttpRequest, name: str) -> HttpResponse:
    """{"request": infer request, "version": number | null} -> {"response", "latency_ms", "timeline", "version", "arm"},
    or {"error": {"code", "message", "remedy"?}} as everywhere.
    """
    actor = actor_of(request)
    found = endpoint_named(actor, name)
    require(actor, Verb.VIEW, found)
    try:
        wish, version = _read(request.body)
        token = make_token(token_secret(), user=actor.name, endpoint=found.name)
        with Client(settings.GATEWAY_URL, token, timeout_s=TIMEOUT_S) as client:
            answer = client.infer(found.name, wish["inputs"], version=version, parameters=_parameters(wish))
    except SerinusError as error:
        return _refused(request, error)
    return JsonResponse(_shown(found.name, answer))


@require_POST
@page
def save_golden(request: HttpRequest, name: str) -> HttpResponse:
    """{"request", "response", "version", "name"?} as they were sent and came back -> 201 {"id", "name"}, or an error as
    above, always with its status.
    """
    actor = actor_of(request)
    found = endpoint_named(actor, name)
    require(actor, Verb.UPLOAD, found.model)
    try:
        row = actions.save_golden(actor=actor, model=found.model, golden=_golden(request.body))
    except SerinusError as error:
        told = body(error.code, error.message, getattr(request, "request_id", ""))
        return JsonResponse(told, status=STATUS.get(error.code, 500))
    return JsonResponse({"id": row.pk, "name": row.name}, status=201)


def _golden(data: bytes) -> Golden:
    """Raises Malformed."""
    wish, version = _read(data)
    sent = json.loads(data)
    try:
        outputs, called = sent["response"]["outputs"], sent.get("name") or ""
    except (KeyError, TypeError) as error:
        raise Malformed("“response” must be an answer with “outputs”.") from error
    if not isinstance(called, str):
        raise Malformed("“name” must be text")
    given = wish.get("parameters") or {}
    return Golden(wish["inputs"], outputs, given, name=called, source_version=version or 0)


def _read(data: bytes) -> tuple[dict[str, Any], int | None]:
    """The infer request and the pinned version. Raises Malformed."""
    try:
        sent = json.loads(data)
        wish, version = sent["request"], sent.get("version")
        tensors = wish["inputs"]
        fine = isinstance(tensors, list) and len(tensors) <= MAX_REQUEST_TENSORS
        if not fine or not all(isinstance(tensor, dict) for tensor in tensors):
            raise Malformed("“inputs” must be a list of tensors: {name, datatype, shape, data}")
        return wish, int(version) if version else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed("The request must be JSON with “inputs”.") from error


def _parameters(wish: dict[str, Any]) -> dict[str, Any]:
    """Those of the request, and the wish to know where its time goes. Raises Malformed."""
    given = wish.get("parameters") or {}
    if not isinstance(given, dict):
        raise Malformed("“parameters” must be an object of names and values")
    return {**given, "timeline": True}


def _timeline(answer: Prediction) -> list[dict[str, Any]]:
    """[{part, ms}] in the order of time; `console` is what this console and its way to the gateway took."""
    told = {part: float(answer.parameters.get(f"timeline_{part}_us", 0)) / 1e3 for part in PARTS}
    if not any(f"timeline_{part}_us" in answer.parameters for part in PARTS):
        return []
    rest = max(0.0, answer.took_ms - sum(told.values()))
    return [{"part": part, "ms": round(ms, 3)} for part, ms in {"console": rest, **told}.items()]


def _refused(request: HttpRequest, error: SerinusError) -> JsonResponse:
    remedy = "No replica is ready yet: see the replicas below the split." if error.code == "not_ready" else ""
    told = body(error.code, error.message, getattr(request, "request_id", ""), remedy=remedy)
    # The page shows every answer; only what the page itself sent wrongly is an error of this request.
    return JsonResponse(told, status=STATUS["malformed"] if error.code == "malformed" else 200)


def _shown(name: str, answer: Prediction) -> dict[str, Any]:
    response: dict[str, Any] = {"model_name": name, "model_version": answer.model_version, "outputs": answer.outputs}
    if own := {key: value for key, value in answer.parameters.items() if not key.startswith("timeline_")}:
        response["parameters"] = own
    return {
        "response": response,
        "latency_ms": round(answer.took_ms, 2),
        "timeline": _timeline(answer),
        "version": answer.model_version,
        "arm": answer.arm,
        "request_id": answer.request_id,
    }
