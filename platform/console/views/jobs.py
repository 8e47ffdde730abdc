"""Batch jobs: the list with a form that starts one; one with its counts, files and errors; cancelling."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_GET, require_POST

from accounts.models import Team
from accounts.permissions import Actor, Verb, actor_of, can, require, visible
from console import batches
from console.language import first_chatting
from console.pages import attempt, keyset, page
from console.snippets import batch_snippet
from endpoints.models import Endpoint
from jobs import actions, rights
from jobs.limits import ENDPOINTS, MAX_FILE_BYTES, MAX_LINES
from jobs.statuses import Status

MAX_NAMES = 12


@require_GET
@page
def jobs(request: HttpRequest) -> HttpResponse:
    actor = actor_of(request)
    require(actor, Verb.VIEW)
    held, more = keyset(batches.rows(actor), request, size=batches.MAX_SHOWN)
    found = [batches.seen(row) for row in held]
    context: dict[str, Any] = {"rows": found, "more": more}
    if request.GET.get("part") == "jobs":
        return render(request, "part/jobs.html", context)
    stamps = {} if request.GET.get("before") else {"jobs": batches.jobs_stamp(found)}
    context |= {"live": {"topic": "jobs", "stamps": stamps}, **_form(actor)}
    return render(request, "jobs.html", context)


def _form(actor: Actor) -> dict[str, Any]:
    names = list(visible(actor, Endpoint.objects.order_by("name")).values_list("name", flat=True)[:MAX_NAMES])
    return {
        "teams": visible(actor, Team.objects.order_by("name"), "pk"),
        "urls": ENDPOINTS,
        "names": names,
        "config": {"files_url": "/v1/files", "batches_url": "/v1/batches", "max_bytes": MAX_FILE_BYTES},
        "max_lines": MAX_LINES,
        "max_bytes": MAX_FILE_BYTES,
        "snippet": batch_snippet(settings.GATEWAY_URL, first_chatting(actor) or next(iter(names), "my-endpoint")),
    }


@require_GET
@page
def job(request: HttpRequest, job: str) -> HttpResponse:
    actor = actor_of(request)
    found = batches.named(actor, job)
    batch = found.batch
    context = {
        "job": found,
        "errors": batches.first_errors(batch.error_file),
        "may_cancel": batch.status in {Status.VALIDATING, Status.IN_PROGRESS} and _may_change(actor, found),
    }
    if request.GET.get("part") == "job":
        return render(request, "part/job.html", context)
    context["live"] = {"topic": f"job:{batch.public_id}", "stamps": {"job": batches.job_stamp(batch)}}
    return render(request, "job.html", context)


def _may_change(actor: Actor, found: batches.Seen) -> bool:
    return rights.is_own(actor, found.batch) or can(actor, Verb.DEPLOY, found.batch.team)


@require_POST
@page
def cancel(request: HttpRequest, job: str) -> HttpResponse:
    actor = actor_of(request)
    batch = batches.named(actor, job).batch
    said = "It is being cancelled. What was answered so far will be in its output file."
    back = reverse("console:job", args=[batch.public_id])
    return attempt(request, back, said, lambda: actions.cancel_batch(actor=actor, batch=batch))
