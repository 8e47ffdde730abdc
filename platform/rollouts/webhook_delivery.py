"""What is due is sent: claimed by the database's clock, tried again ever later, given up after about an hour.

A claim moves `next_at` ahead, so two workers never send one delivery at the same time, and one that was killed while it
sent is tried again when its claim has lapsed: at least once, never lost.
"""

from __future__ import annotations

import asyncio
import random
import threading
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from rollouts.webhook_models import WebhookDelivery
from rollouts.webhook_sending import DEADLINE_S, Answered, Letter, send

# Seconds after each attempt that failed; with these the last one is about an hour after the first.
DELAYS_S = (5, 15, 60, 180, 420, 900, 1800)
MAX_ATTEMPTS = len(DELAYS_S) + 1
JITTER = 0.1
CLAIM = timedelta(seconds=4 * DEADLINE_S)
AT_ONCE = 20
ROUNDS = 5
KEPT = timedelta(days=14)
EXPIRED_AT_ONCE = 5000
State = WebhookDelivery.State
_busy = threading.Lock()


def deliver_due() -> int:
    """Sends what is due, at most AT_ONCE side by side in ROUNDS rounds; answers how many were tried. One at a time in a
    process, so that receivers which hang never take more than one of a worker's threads.
    """
    if not _busy.acquire(blocking=False):
        return 0
    try:
        return _rounds()
    finally:
        _busy.release()


def _rounds() -> int:
    tried = 0
    for _ in range(ROUNDS):
        claimed = _claim()
        if not claimed:
            break
        for delivery, answer in zip(claimed, asyncio.run(_send_all(claimed)), strict=True):
            _settle(delivery, answer)
        tried += len(claimed)
    return tried


def expire_deliveries() -> int:
    """Forgets what is older than KEPT, a bounded number per run; answers how many."""
    old = WebhookDelivery.objects.filter(at__lt=Now() - KEPT).exclude(state=State.PENDING).order_by("at")
    return WebhookDelivery.objects.filter(pk__in=list(old.values_list("pk", flat=True)[:EXPIRED_AT_ONCE])).delete()[0]


@transaction.atomic
def _claim() -> list[WebhookDelivery]:
    rows = WebhookDelivery.objects.select_for_update(skip_locked=True, of=("self",)).select_related("webhook")
    due = list(rows.filter(state=State.PENDING, next_at__lte=Now()).order_by("next_at")[:AT_ONCE])
    WebhookDelivery.objects.filter(pk__in=[one.pk for one in due]).update(
        attempt=F("attempt") + 1, next_at=Now() + CLAIM
    )
    for one in due:
        one.attempt += 1
    return due


async def _send_all(claimed: list[WebhookDelivery]) -> list[Answered]:
    letters = [Letter(str(one.pk), one.webhook.url, one.webhook.secret, one.event, one.body) for one in claimed]
    private = settings.WEBHOOKS_ALLOW_PRIVATE
    return list(await asyncio.gather(*(send(letter, allow_private=private) for letter in letters)))


def _settle(delivery: WebhookDelivery, answer: Answered) -> None:
    """Writes how it went, unless somebody else has claimed it meanwhile."""
    told = {"status": answer.status, "response": answer.response, "took_ms": answer.took_ms}
    mine = WebhookDelivery.objects.filter(pk=delivery.pk, attempt=delivery.attempt, state=State.PENDING)
    if answer.is_fine:
        mine.update(**told, state=State.DELIVERED, done_at=Now())
    elif delivery.attempt >= MAX_ATTEMPTS:
        mine.update(**told, state=State.GIVEN_UP, done_at=Now())
    else:
        mine.update(**told, next_at=Now() + timedelta(seconds=delay_s(delivery.attempt)))


def delay_s(attempt: int) -> float:
    """How long after the `attempt`-th (from 1) the next one is."""
    spread = 1 + random.uniform(-JITTER, JITTER)  # noqa: S311 (no secret; receivers should not be hit in step)
    return DELAYS_S[min(attempt, len(DELAYS_S)) - 1] * spread
