"""Batches as the console shows them: how far, how fast, how long still, and which lines failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from django.db.models import F, FloatField
from django.db.models.functions import Cast, Coalesce, Extract, Now

from accounts.permissions import Actor, Verb, teams_where
from console.reading import stamp
from inference.errors import NotFound
from jobs import rights, store
from jobs.models import Batch, File
from jobs.statuses import ACTIVE

MAX_SHOWN = 50
MAX_LINES_SHOWN = 20
HEAD_BYTES = 256 << 10
Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """A batch and its figures. share: 0 to 1; speed: lines a second since it began; eta_s: None where it cannot be told."""

    batch: Batch
    done: int
    share: float
    speed: float | None
    eta_s: float | None

    @property
    def active(self) -> bool:
        return self.batch.status in ACTIVE


def rows(actor: Actor) -> Any:
    """The batches that the actor may see, with `took_s`: seconds since the first line began, up to the end."""
    took = Cast(Extract(Coalesce(F("ended_at"), Now()) - F("in_progress_at"), "epoch"), FloatField())
    found = Batch.objects.select_related("team", "input_file", "output_file", "error_file").annotate(took_s=took)
    return rights.seen(actor, found)


def seen(batch: Batch) -> Seen:
    done = batch.completed + batch.failed
    took_s = getattr(batch, "took_s", None)
    speed = done / took_s if took_s and done else None
    left = batch.total - done
    eta_s = left / speed if speed and left and batch.status == "in_progress" else None
    return Seen(batch, done, done / batch.total if batch.total else 0.0, speed, eta_s)


def named(actor: Actor, public_id: str) -> Seen:
    """Raises NotFound."""
    row = rows(actor).filter(public_id=public_id[:64]).first()
    if row is None:
        raise NotFound(f"There is no job “{public_id[:40]}” in your teams.")
    return seen(row)


def job_data(pk: int) -> Data:
    """The facts of one batch's page."""
    took = Cast(Extract(Coalesce(F("ended_at"), Now()) - F("in_progress_at"), "epoch"), FloatField())
    row = Batch.objects.annotate(took_s=took).filter(pk=pk).first()
    if row is None:
        raise NotFound("This job is gone.")
    return facts(seen(row))


def facts(one: Seen) -> Data:
    batch = one.batch
    return {
        "share": round(one.share, 4),
        "done": one.done,
        "completed": batch.completed,
        "failed": batch.failed,
        "total": batch.total,
        "speed": one.speed and round(one.speed, 2),
        "eta": one.eta_s and round(one.eta_s),
        "stamps": {"job": job_stamp(batch)},
    }


def job_stamp(batch: Batch) -> str:
    """Changes when more than numbers of the page would look different."""
    return stamp(batch.status, batch.total, batch.output_file_id, batch.error_file_id, batch.resume_at is not None)


def jobs_data(actor: Actor) -> Data:
    """Shares and counts of the newest batches; the list's fragment is asked for anew when one begins or ends."""
    found = [seen(row) for row in rows(actor).order_by("-pk")[:MAX_SHOWN]]
    data: Data = {"stamps": {"jobs": jobs_stamp(found)}}
    for one in found:
        if one.active:
            name = one.batch.public_id
            data |= {f"share:{name}": round(one.share, 4), f"done:{name}": one.done, f"failed:{name}": one.batch.failed}
    return data


def jobs_stamp(found: list[Seen]) -> str:
    return stamp([(one.batch.pk, job_stamp(one.batch)) for one in found])


def scope_of(actor: Actor) -> str:
    """Equal for all who see the same list."""
    return "all" if actor.superuser else ",".join(str(team) for team in sorted(teams_where(actor, Verb.VIEW)))


def first_errors(file: File | None) -> list[Data]:
    """[{custom_id, code, message}] of the first lines of an error file."""
    if file is None:
        return []
    try:
        with store.path_of(file.public_id).open("rb") as content:
            head = content.read(HEAD_BYTES)
    except FileNotFoundError:
        return []
    found = []
    for row in head.split(b"\n")[:-1][:MAX_LINES_SHOWN]:
        told = msgspec.json.decode(row)
        found.append({"custom_id": told["custom_id"], **_why(told)})
    return found


def _why(told: Data) -> Data:
    if told["error"]:
        return {"code": told["error"]["code"], "message": told["error"]["message"]}
    body = told["response"]["body"]
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return {"code": told["response"]["status_code"], "message": str(message or "")[:500]}
