"""One version: what it is, what validation found, where it is used, and what can be done with it."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from accounts.permissions import actor_of, visible
from console.forms import DeployForm, complain
from console.language import facts_of, is_language, steps_of
from console.live import running_checks, version_stamp
from console.pages import attempt, page, rights
from console.pipelines import pipeline_of
from console.reading import version_numbered
from console.snippets import chat_snippets, needs_key
from endpoints import actions as endpoints
from endpoints.models import Endpoint, Variant
from fleet.models import Deployment, Device
from fleet.standing import ready_counts
from inference.protocol.pipelines import FORMAT
from registry import actions
from registry.conversions import conversion_of
from registry.downloads import attachment
from registry.models import Version, VersionStatus

MAX_FILES = 200
MAX_SHOWN_CHARS = 200


@require_GET
@page
def version(request: HttpRequest, name: str, number: int) -> HttpResponse:
    found = version_numbered(actor_of(request), name, number)
    context = _context(request, found)
    if request.GET.get("part") == "version":
        return render(request, "part/version.html", context)
    live = {"topic": f"version:{name}:{number}", "stamps": {"version": version_stamp(found)}}
    return render(request, "version.html", {**context, "live": live})


def _context(request: HttpRequest, found: Version) -> dict[str, Any]:
    actor = actor_of(request)
    files = (found.served_files or found.manifest.get("files", [])) if found.manifest else []
    measured = (found.report or {}).get("measurements", {})
    variants = found.variants.select_related("endpoint").order_by("endpoint__name")
    return {
        "version": found,
        "model": found.model,
        "checks": running_checks(found),
        "chosen": _chosen(found.settings or {}),
        "files": files[:MAX_FILES],
        "files_left": max(0, len(files) - MAX_FILES),
        "measured": measured,
        "latency": [] if is_language(found) else _latency(measured),
        **(_language_context(found, measured) if is_language(found) else {}),
        "variants": list(variants),
        "calls": _calls(found, list(variants)),
        "aliases": list(found.aliases.order_by("name")),
        "deployment": Deployment.objects.filter(version=found).first(),
        "ready": ready_counts({found.pk}).get(found.pk, 0),
        "pipeline": pipeline_of(found) if found.format == FORMAT else None,
        "may": rights(actor, found.model),
        "conversion": conversion_of(found),
        **(_deploy_context(request, found) if found.status == VersionStatus.READY else {}),
    }


def _chosen(given: dict[str, Any]) -> list[tuple[str, Any]]:
    """What was set, groups of settings (a language model's `generation`) one by one; long texts are cut."""
    found: list[tuple[str, Any]] = []
    for name, value in given.items():
        for own, one in value.items() if isinstance(value, dict) else ((name, value),):
            if one:
                found.append(
                    (own, f"{one[:MAX_SHOWN_CHARS]}…" if isinstance(one, str) and len(one) > MAX_SHOWN_CHARS else one)
                )
    return found


def _language_context(found: Version, measured: dict[str, Any]) -> dict[str, Any]:
    return {"language": facts_of(found) or {"architecture": ""}, "steps": steps_of(measured)}


def _calls(found: Version, variants: list[Variant]) -> list[dict[str, str]]:
    """Ready-to-paste chats with this version, at the endpoint where it serves."""
    if not (variants and is_language(found)):
        return []
    endpoint = variants[0].endpoint
    chats = bool(facts_of(found).get("has_chat_template", True))
    name = f"{endpoint.name}@{found.number}"
    return chat_snippets(settings.GATEWAY_URL, name, key=needs_key(endpoint), chats=chats)


def _deploy_context(request: HttpRequest, found: Version) -> dict[str, Any]:
    own = visible(actor_of(request), Endpoint.objects.filter(model=found.model)).order_by("name")
    return {
        "own_endpoints": list(own.values_list("name", flat=True)[:50]),
        "devices": sorted(set(Device.objects.values_list("name", flat=True)[:500])),
    }


def _latency(measured: dict[str, Any]) -> list[dict[str, float]]:
    """Rows of batch size, median of one pass in ms, ms per item; ascending."""
    found = measured.get("latency_ms") or {}
    pairs = sorted((int(size), float(ms)) for size, ms in found.items() if str(size).isdigit() and int(size))
    top = max((ms for _, ms in pairs), default=0.0)
    return [
        {"batch": size, "ms": ms, "per_item_ms": ms / size, "per_s": size / ms * 1000 if ms else 0, "top": top}
        for size, ms in pairs
    ]


@require_GET
@page
def report(request: HttpRequest, name: str, number: int) -> HttpResponse:
    """The validation report as JSON."""
    found = version_numbered(actor_of(request), name, number)
    body = {"version": str(found), "status": found.status, "reason": found.reason, "remedy": found.remedy}
    response = JsonResponse({**body, "report": found.report, "conversion": conversion_of(found)})
    response["Content-Disposition"] = f'attachment; filename="{name}-{number}-report.json"'
    return response


@require_POST
@page
def deploy(request: HttpRequest, name: str, number: int) -> HttpResponse:
    actor, found = actor_of(request), version_numbered(actor_of(request), name, number)
    back = reverse("console:version", args=[name, number])
    form = DeployForm(request.POST)
    if not form.is_valid():
        return complain(request, form, back)
    wish = form.cleaned_data
    target = wish["endpoint"] or name
    return attempt(
        request,
        back,
        f"Version {number} is on its way to “{target}”.",
        lambda: endpoints.deploy(
            version=found,
            endpoint_name=target,
            replicas=wish["replicas"],
            device=wish["device"] or "any",
            weight_bp=None if wish["percent"] is None else int(wish["percent"] * 100),
            access=wish["access"] or "key",
            actor=actor,
        ),
        onward=reverse("console:endpoint", args=[target]),
    )


def _move(request: HttpRequest, name: str, number: int, action: Any, said: str) -> HttpResponse:
    actor, found = actor_of(request), version_numbered(actor_of(request), name, number)
    reason = request.POST.get("reason", "").strip()
    back = reverse("console:version", args=[name, number])
    return attempt(request, back, said, lambda: action(actor=actor, version=found, reason=reason))


@require_POST
@page
def approve(request: HttpRequest, name: str, number: int) -> HttpResponse:
    return _move(request, name, number, actions.approve_version, "Approved. It is being checked now.")


@require_POST
@page
def reject(request: HttpRequest, name: str, number: int) -> HttpResponse:
    return _move(request, name, number, actions.reject_version, "Refused. The uploader reads your reason.")


@require_POST
@page
def archive(request: HttpRequest, name: str, number: int) -> HttpResponse:
    return _move(request, name, number, actions.archive_version, f"Version {number} is archived.")


@require_POST
@page
def convert(request: HttpRequest, name: str, number: int) -> HttpResponse:
    actor, found = actor_of(request), version_numbered(actor_of(request), name, number)
    back = reverse("console:version", args=[name, number])
    said = "A host writes its tensors as safetensors now."
    return attempt(request, back, said, lambda: actions.convert_version(actor=actor, version=found))


@require_GET
@page
def converted(request: HttpRequest, name: str, number: int) -> StreamingHttpResponse:
    """model.safetensors, as conversion made it."""
    actor = actor_of(request)
    return attachment(actions.converted_file(actor=actor, version=version_numbered(actor, name, number)))
