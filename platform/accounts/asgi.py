"""Who calls a raw ASGI application: the same two ways in as at the control API, a Bearer key or a session with CSRF."""

from __future__ import annotations

import io
import secrets
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse
from django.middleware.csrf import CsrfViewMiddleware

from accounts.authentication import REFUSED, key_of_caller
from accounts.models import User
from accounts.permissions import Actor, actor_of_key, actor_of_user
from inference.errors import Forbidden, Malformed, Unauthenticated

SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


class _CsrfCheck(CsrfViewMiddleware):
    """Says why instead of drawing a page."""

    def _reject(self, request: Any, reason: str) -> Any:
        return reason


def new_request_id() -> str:
    return secrets.token_hex(8)


def actor_of_scope(scope: dict[str, Any], request_id: str) -> Actor:
    """The caller of an HTTP scope. Touches the database, so call it in a thread.

    Raises Malformed for a foreign Host, Unauthenticated, and Forbidden for a session without its CSRF token.
    """
    request = ASGIRequest(scope, io.BytesIO())
    try:
        request.get_host()
    except DisallowedHost as error:
        raise Malformed("this host name is not served here") from error
    header = request.headers.get("Authorization", "")
    if header.startswith("Bearer "):
        key = key_of_caller(header[7:].strip())
        if key is None:
            raise Unauthenticated(REFUSED)
        return actor_of_key(key, request_id)
    return _actor_of_session(request, request_id)


def _actor_of_session(request: ASGIRequest, request_id: str) -> Actor:
    cookie = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    if not cookie:
        raise Unauthenticated
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(cookie)
    user = get_user(request)
    if not isinstance(user, User):
        raise Unauthenticated
    if request.method not in SAFE_METHODS:
        check = _CsrfCheck(lambda _: HttpResponse())
        check.process_request(request)
        reason = check.process_view(request, lambda *_: HttpResponse(), (), {})
        if reason:
            raise Forbidden(f"CSRF: {reason}")
    return actor_of_user(user, request_id)
