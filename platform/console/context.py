"""What every template knows."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest

from accounts.permissions import Verb, actor_of, can

# (group, [(address, icon, name, the verb that shows it)])
NAVIGATION = (
    ("", (("/", "home", "Overview", Verb.VIEW),)),
    (
        "Serve",
        (
            ("/models/", "box", "Models", Verb.VIEW),
            ("/endpoints/", "route", "Endpoints", Verb.VIEW),
            ("/rollouts/", "steps", "Rollouts", Verb.VIEW),
            ("/playground/", "chat", "Playground", Verb.VIEW),
            ("/jobs/", "play", "Jobs", Verb.VIEW),
            ("/fleet/", "server", "Hosts and replicas", Verb.VIEW),
        ),
    ),
    (
        "Access",
        (
            ("/keys/", "key", "API keys", Verb.MANAGE_KEYS),
            ("/people/", "people", "People and teams", Verb.VIEW),
            ("/audit/", "list", "Audit trail", Verb.VIEW_AUDIT),
        ),
    ),
    ("Settings", (("/webhooks/", "bell", "Webhooks", Verb.OPERATE),)),
)


def console(request: HttpRequest) -> dict[str, Any]:
    actor = actor_of(request)
    return {
        "actor": actor,
        "insecure": settings.INSECURE,
        "gateway_url": settings.GATEWAY_URL,
        "navigation": _navigation(request) if actor.known else [],
    }


def _navigation(request: HttpRequest) -> list[dict[str, Any]]:
    actor = actor_of(request)
    groups = []
    for group, links in NAVIGATION:
        shown = [
            {"url": url, "icon": icon, "name": name, "here": _is_here(request.path, url)}
            for url, icon, name, verb in links
            if can(actor, verb)
        ]
        if shown:
            groups.append({"name": group, "links": shown})
    return groups


def _is_here(path: str, url: str) -> bool:
    return path == url if url == "/" else path.startswith(url)
