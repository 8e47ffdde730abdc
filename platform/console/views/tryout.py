"""One prediction from the endpoint's page, through the gateway like any other client's."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_POST

from accounts.permissions import Verb, actor_of, require
from accounts.problems import body
from console.pages import page
from console.playground import make_token
from console.reading import endpoint_named
from endpoints.publish import token_secret

TIMEOUT_S = 35.0
MAX_ANSWER_BYTES = 8 << 20


@require_POST
@page
def try_it(request: HttpRequest, name: str) -> HttpResponse:
    """{"request": OIP infer request, "version": number | null} -> {"response", "latency_ms", "version", "arm"}."""
    actor = actor_of(request)
    found = endpoint_named(actor, name)
    require(actor, Verb.VIEW, found)
    request_id = getattr(request, "request_id", "")
    try:
        wish = json.loads(request.body)
        payload, version = wish["request"], wish.get("version")
        part = f"/versions/{int(version)}" if version else ""
    except (ValueError, KeyError, TypeError, AttributeError):
        return JsonResponse(
            body("malformed", "The request is no JSON of the form {request, version}.", request_id), status=400
        )
    token = make_token(token_secret(), user=actor.name, endpoint=name)
    url = f"{settings.GATEWAY_URL.rstrip('/')}/v2/models/{name}{part}/infer"
    return _called(url, payload, token, request_id)


def _called(url: str, payload: Any, token: str, request_id: str) -> HttpResponse:
    began = time.perf_counter()
    try:
        answer = httpx.post(url, json=payload, headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT_S)
    except httpx.TimeoutException:
        return JsonResponse(body("deadline_exceeded", "The gateway did not answer in time.", request_id), status=200)
    except httpx.HTTPError:
        said = "The gateway does not answer."
        remedy = "It may be starting: try again in a moment, or look at “serinus doctor”."
        return JsonResponse(body("unavailable", said, request_id, remedy=remedy), status=200)
    latency_ms = (time.perf_counter() - began) * 1000
    if len(answer.content) > MAX_ANSWER_BYTES:
        return JsonResponse(body("too_large", "The answer is too large to be shown here.", request_id), status=200)
    return JsonResponse(_shown(answer, latency_ms, request_id))


def _shown(answer: httpx.Response, latency_ms: float, request_id: str) -> dict[str, Any]:
    try:
        content = answer.json()
    except ValueError:
        return body("internal", f"The gateway answered {answer.status_code} without JSON.", request_id)
    if answer.is_error or "outputs" not in content:
        error = content.get("error", "") if isinstance(content, dict) else ""
        message = error if isinstance(error, str) else error.get("message", "")
        code = content.get("code", "") if isinstance(content, dict) else ""
        return body(
            code or str(answer.status_code), message or f"The gateway answered {answer.status_code}.", request_id
        )
    return {
        "response": content,
        "latency_ms": round(latency_ms, 2),
        "version": answer.headers.get("x-model-version") or content.get("model_version"),
        "arm": answer.headers.get("x-rollout-arm", ""),
    }
