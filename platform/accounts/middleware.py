"""Sets `request.actor` for pages; the API's authentication sets it for keys."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from accounts.models import User
from accounts.permissions import ANONYMOUS, actor_of_user


class ActorMiddleware:
    """Knows the person behind the session."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        request_id = getattr(request, "request_id", "")
        user = request.user
        request.actor = actor_of_user(user, request_id) if isinstance(user, User) else ANONYMOUS  # type: ignore[attr-defined]
        return self.get_response(request)
