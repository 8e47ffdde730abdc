"""The playground: a chat with one language model, or with two side by side."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from accounts.permissions import actor_of
from console.language import chat_targets, undeployed
from console.pages import page, rights


@require_GET
@page
def playground(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    targets = chat_targets(actor)
    context = {
        "targets": targets,
        "waiting": [] if targets else undeployed(actor),
        "may": rights(actor),
        "island": {"targets": targets, "gateway_url": settings.GATEWAY_URL.rstrip("/"), "insecure": settings.INSECURE},
    }
    return render(request, "playground.html", context)
