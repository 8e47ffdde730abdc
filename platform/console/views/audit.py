"""Who did what, when, to what."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from accounts.models import AuditEntry
from accounts.permissions import Verb, actor_of, require, visible
from console.pages import keyset, page

FILTERS = {"verb": "verb", "kind": "object_kind", "object": "object_name__icontains", "actor": "actor__icontains"}


@require_GET
@page
def audit(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    require(actor, Verb.VIEW_AUDIT)
    rows = visible(actor, AuditEntry.objects.select_related("team"), verb=Verb.VIEW_AUDIT)
    chosen = {name: request.GET.get(name, "").replace("\0", "").strip()[:200] for name in FILTERS}
    found = rows.filter(**{FILTERS[name]: value for name, value in chosen.items() if value})
    held, more = keyset(found, request)
    context = {
        "rows": [{"entry": entry, "diff": _diff(entry)} for entry in held],
        "more": more,
        "chosen": chosen,
        "filtered": any(chosen.values()),
        "verbs": _verbs(),
    }
    return render(request, "part/audit.html" if request.GET.get("part") else "audit.html", context)


def _verbs() -> list[str]:
    return sorted(AuditEntry.objects.order_by().values_list("verb", flat=True).distinct()[:200])


def _diff(entry: AuditEntry) -> list[tuple[str, str, str]]:
    """(field, before, after) of what the entry tells."""
    before, after = entry.before or {}, entry.after or {}
    fields = [*before, *(field for field in after if field not in before)]
    return [
        (field, _text(before.get(field)), _text(after.get(field)))
        for field in fields
        if before.get(field) != after.get(field)
    ]


def _text(value: object) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, list):
        return ", ".join(map(str, value))[:200]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {held}" for key, held in value.items())[:200]
    return str(value)[:200]
