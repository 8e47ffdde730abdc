"""What every template knows."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest

from accounts.permissions import actor_of


def console(request: HttpRequest) -> dict[str, Any]:
    return {"actor": actor_of(request), "insecure": settings.INSECURE, "gateway_url": settings.GATEWAY_URL}
