"""Webhooks: made, changed, deleted, tried; and events written for them in the transaction that they tell of.

So an event is told if and only if what it tells of happened. Sending is rollouts.webhook_delivery's.
"""

from __future__ import annotations

import json
import logging
import secrets
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from accounts.audit import record
from accounts.models import Team
from accounts.permissions import Actor, Verb, require
from accounts.wakeups import send_on_commit
from inference.errors import Conflict, InvalidInput, NotFound
from rollouts.models import RolloutEvent
from rollouts.phases import Phase
from rollouts.webhook_models import Webhook, WebhookDelivery
from rollouts.webhook_targets import check_url

DELIVER = "rollouts.tasks.deliver_webhooks"
MAX_WEBHOOKS_PER_TEAM = 20
MAX_PENDING = 1000
MAX_BODY_BYTES = 64 << 10
PING = "ping"
EVERY = "*"
# What a rollout's events are called: its phases, and what happens within one.
EVENTS = tuple(
    f"rollout.{kind}"
    for kind in (
        "started", *(phase.value for phase in Phase if phase is not Phase.PENDING), "step", "traffic", "scale", "promote",
        "pause", "resume", "extend", "approve", "abort", "gone",
    )
)  # fmt: skip
log = logging.getLogger(__name__)


@transaction.atomic
def create_webhook(*, actor: Actor, team: Team, url: str, events: Sequence[str] = ()) -> tuple[Webhook, str]:
    """A webhook and its secret, which is shown this once. events: names of EVENTS, none for all. Raises InvalidInput,
    Conflict, Forbidden.
    """
    require(actor, Verb.OPERATE, team)
    check_url(url, allow_private=settings.WEBHOOKS_ALLOW_PRIVATE)
    Team.objects.select_for_update().get(pk=team.pk)
    if Webhook.objects.filter(team=team).count() >= MAX_WEBHOOKS_PER_TEAM:
        raise Conflict(f"a team has up to {MAX_WEBHOOKS_PER_TEAM} webhooks: delete one first")
    secret = f"whsec_{secrets.token_urlsafe(32)}"
    webhook = Webhook.objects.create(team=team, url=url, secret=secret, events=_checked(events), creator=actor.name)
    record(actor, "create_webhook", "webhook", str(webhook.pk), team=team, after=_shown(webhook))
    return webhook, secret


@transaction.atomic
def change_webhook(
    *,
    actor: Actor,
    webhook: Webhook,
    url: str | None = None,
    events: Sequence[str] | None = None,
    enabled: bool | None = None,
) -> Webhook:
    """None leaves a field as it is. What waits for one that is switched off is given up."""
    found = _locked(actor, webhook)
    before = _shown(found)
    if url is not None:
        found.url = check_url(url, allow_private=settings.WEBHOOKS_ALLOW_PRIVATE)
    found.events = found.events if events is None else _checked(events)
    found.enabled = found.enabled if enabled is None else enabled
    found.save(update_fields=["url", "events", "enabled"])
    if enabled is False:
        waiting = WebhookDelivery.objects.filter(webhook=found, state=WebhookDelivery.State.PENDING)
        waiting.update(state=WebhookDelivery.State.GIVEN_UP, response="the webhook was switched off", done_at=Now())
    record(actor, "change_webhook", "webhook", str(found.pk), team=found.team, before=before, after=_shown(found))
    return found


@transaction.atomic
def delete_webhook(*, actor: Actor, webhook: Webhook) -> None:
    """With its log of deliveries."""
    found = _locked(actor, webhook)
    before, identity = _shown(found), str(found.pk)
    found.delete()
    record(actor, "delete_webhook", "webhook", identity, team=found.team, before=before)


@transaction.atomic
def test_webhook(*, actor: Actor, webhook: Webhook) -> WebhookDelivery:
    """Sends the event "ping" to it, also where it is switched off. Raises Conflict while too much waits."""
    found = _locked(actor, webhook)
    made = _write(found, PING, {"words": f"{actor.name} tried this webhook."})
    if made is None:
        raise Conflict(f"{MAX_PENDING} deliveries wait for this webhook already")
    record(actor, "test_webhook", "webhook", str(found.pk), team=found.team)
    send_on_commit(DELIVER)
    return made


def emit(event: str, body: Mapping[str, Any], team: Team) -> int:
    """Writes `event` for each of the team's webhooks that listens to it, in the caller's transaction; answers how many.
    Beyond MAX_PENDING that wait for one webhook, or MAX_BODY_BYTES, an event is dropped for it, and the log says so.
    """
    rows = [hook for hook in Webhook.objects.filter(team=team, enabled=True) if _listens(hook, event)]
    made = [delivery for hook in rows if (delivery := _write(hook, event, body)) is not None]
    if made:
        send_on_commit(DELIVER)
    return len(made)


def tell(event: RolloutEvent) -> int:
    """`emit` for one event of a rollout. Called where the event is written."""
    rollout = event.rollout
    return emit(
        f"rollout.{event.kind}",
        {
            "rollout": str(rollout.pk),
            "endpoint": rollout.endpoint_name,
            "model": rollout.candidate.model.name,
            "stable": rollout.stable.number,
            "candidate": rollout.candidate.number,
            "plan": rollout.plan_name,
            "seq": event.seq,
            "at": event.at.isoformat(),
            "actor": event.actor,
            "actor_kind": event.actor_kind,
            "kind": event.kind,
            "reason": str(event.reason),
            "words": event.words,
            "phase_before": str(event.phase_before),
            "phase": str(event.phase_after),
            "step": event.step,
            "weights_before": event.weights_before,
            "weights": event.weights_after,
        },
        rollout.team,
    )


def _listens(webhook: Webhook, event: str) -> bool:
    return EVERY in webhook.events or event in webhook.events


def _write(webhook: Webhook, event: str, body: Mapping[str, Any]) -> WebhookDelivery | None:
    identity = uuid.uuid4()
    text = json.dumps(
        {"id": str(identity), "event": event, "team": webhook.team.name, "data": dict(body)},
        ensure_ascii=False,
        default=str,
    )
    if len(text.encode()) > MAX_BODY_BYTES:
        log.warning("%s is not told of %s: it has more than %d bytes", webhook, event, MAX_BODY_BYTES)
        return None
    if WebhookDelivery.objects.filter(webhook=webhook, state="pending").count() >= MAX_PENDING:
        log.warning("%s is not told of %s: %d deliveries wait for it already", webhook, event, MAX_PENDING)
        return None
    return WebhookDelivery.objects.create(id=identity, webhook=webhook, event=event, body=text, next_at=timezone.now())


def _locked(actor: Actor, webhook: Webhook) -> Webhook:
    require(actor, Verb.OPERATE, webhook)
    rows = Webhook.objects.select_for_update(of=("self",)).select_related("team")
    found = rows.filter(pk=webhook.pk).first()
    if found is None:
        raise NotFound("this webhook has been deleted")
    return found


def _checked(events: Sequence[str]) -> list[str]:
    wanted = list(dict.fromkeys(events)) or [EVERY]
    unknown = [name for name in wanted if name != EVERY and name not in EVENTS]
    if unknown:
        raise InvalidInput(f"there is no event '{unknown[0][:64]}': use {EVERY}, or any of {', '.join(EVENTS)}")
    return [EVERY] if EVERY in wanted else wanted


def _shown(webhook: Webhook) -> dict[str, Any]:
    """For the audit trail. An address's path and query may be a secret of the receiver's."""
    return {"host": webhook.url.split("/")[2], "events": webhook.events, "enabled": webhook.enabled}
