"""Bearer keys at the control API."""

from __future__ import annotations

from django.db.models import Q
from django.db.models.functions import Now
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from accounts import keys
from accounts.actions import note_used
from accounts.models import ApiKey
from accounts.permissions import actor_of_key

REFUSED = "unknown, revoked or expired API key"
DUMMY_DIGEST = keys.digest("no key has this secret")


class KeyUser:
    """What Django REST framework takes for a user when a key calls."""

    is_authenticated = True
    is_anonymous = False
    is_active = True
    pk = None

    def __init__(self, key: ApiKey) -> None:
        self.key = key
        self.username = f"ser_{key.id}"


def find_key(token: str) -> ApiKey | None:
    """The valid key of this token; takes as long for an unknown key as for a wrong secret."""
    parts = keys.split(token)
    if parts is None:
        return None
    row = (
        ApiKey.objects.select_related("team")
        .filter(Q(expires_at__isnull=True) | Q(expires_at__gt=Now()), id=parts[0], revoked_at__isnull=True)
        .first()
    )
    good = keys.matches(parts[1], row.digest if row else DUMMY_DIGEST)
    return row if good else None


def key_of_caller(token: str) -> ApiKey | None:
    """As find_key, for somebody who calls with it: its use is noted."""
    key = find_key(token)
    if key is not None:
        note_used([key.pk])
    return key


class KeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer ser_<id>.<secret>`."""

    def authenticate(self, request: Request) -> tuple[KeyUser, ApiKey] | None:
        header = request.headers.get("Authorization", "")
        if not header.startswith("Bearer "):
            return None
        key = key_of_caller(header[7:].strip())
        if key is None:
            raise AuthenticationFailed(REFUSED)
        django_request = request._request  # noqa: SLF001 (DRF has no other way to reach it)
        django_request.actor = actor_of_key(key, getattr(django_request, "request_id", ""))  # type: ignore[attr-defined]
        return KeyUser(key), key

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="serinus"'
