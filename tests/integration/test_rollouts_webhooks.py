"""Webhooks against a real receiver: signed, retried, given up, never to where they must not go, told with what happened."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models.functions import Now

import accounts.wakeups
from accounts.models import AuditEntry
from inference.errors import Conflict, Forbidden, InvalidInput, NotFound
from rollouts import actions as rollouts
from rollouts import plans, webhook_delivery, webhooks
from rollouts.controller import Controller
from rollouts.models import RolloutEvent
from rollouts.webhook_delivery import CLAIM, DELAYS_S, MAX_ATTEMPTS, delay_s, deliver_due, expire_deliveries
from rollouts.webhook_models import Webhook, WebhookDelivery
from tests.integration.test_accounts_api import of
from tests.support.cast import Cast
from tests.support.celery_workers import celery_worker
from tests.support.database import Services
from tests.support.receivers import Receiver, dripping, endless, plain, receiver
from tests.support.rollouts import PASS, Clock, Word, drive, stage

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(120)]
EVENT = "rollout.succeeded"


@pytest.fixture
def inside(settings: Any) -> None:
    """Receivers of these tests live on this machine."""
    settings.WEBHOOKS_ALLOW_PRIVATE = True


@pytest.fixture
def there(inside: None) -> Iterator[Receiver]:
    with receiver() as found:
        yield found


def make(cast: Cast, there: Receiver, **more: Any) -> tuple[Webhook, str]:
    return webhooks.create_webhook(actor=cast.actor("owner"), team=cast.red, url=f"{there.url}/hook?x=1", **more)


def only() -> WebhookDelivery:
    return WebhookDelivery.objects.get()


def make_due() -> None:
    WebhookDelivery.objects.filter(state="pending").update(next_at=Now())


def test_an_event_arrives_signed(cast: Cast, there: Receiver) -> None:
    _, secret = make(cast, there)
    assert webhooks.emit(EVENT, {"endpoint": "digits", "words": "Grüße 🐤"}, cast.red) == 1
    assert deliver_due() == 1
    (got,) = there.got
    assert got.path == "/hook?x=1"
    assert got.is_signed(secret)
    assert not got.is_signed("whsec_other")
    assert not got.is_signed(secret, now=time.time() + 600)
    body = json.loads(got.body)
    assert (body["event"], body["team"], body["data"]["words"]) == (EVENT, "red", "Grüße 🐤")
    assert got.headers["x-serinus-event"] == EVENT
    assert got.headers["x-serinus-delivery"] == body["id"] == str(only().pk)
    assert got.headers["host"] == there.url.removeprefix("http://")
    row = only()
    assert (row.state, row.status, row.attempt, row.response) == ("delivered", 200, 1, "thank you")
    assert row.done_at is not None
    assert deliver_due() == 0


def test_only_those_that_listen_are_told(cast: Cast, there: Receiver) -> None:
    all_of, _ = make(cast, there)
    some, _ = make(cast, there, events=[EVENT])
    off, _ = make(cast, there)
    webhooks.change_webhook(actor=cast.actor("owner"), webhook=off, enabled=False)
    webhooks.create_webhook(actor=cast.actor("stranger"), team=cast.blue, url=there.url)
    assert webhooks.emit("rollout.step", {}, cast.red) == 1
    assert webhooks.emit(EVENT, {}, cast.red) == 2
    told = set(WebhookDelivery.objects.values_list("webhook", "event"))
    assert told == {(all_of.pk, "rollout.step"), (all_of.pk, EVENT), (some.pk, EVENT)}


def test_what_is_rolled_back_is_not_told(cast: Cast, there: Receiver) -> None:
    make(cast, there)
    with transaction.atomic():
        assert webhooks.emit(EVENT, {}, cast.red) == 1
        transaction.set_rollback(True)
    assert not WebhookDelivery.objects.exists()


def test_a_failure_is_tried_again_until_it_works(cast: Cast, there: Receiver) -> None:
    make(cast, there)
    there.answer = lambda handler: plain(handler, 503, b"later")
    webhooks.emit(EVENT, {}, cast.red)
    assert deliver_due() == 1
    row = only()
    assert (row.state, row.status, row.response, row.attempt) == ("pending", 503, "later", 1)
    assert 4 <= (row.next_at - row.at).total_seconds() <= 8
    assert deliver_due() == 0, "it is not due yet"
    there.answer = lambda handler: plain(handler, 204)
    make_due()
    assert deliver_due() == 1
    assert (only().state, only().attempt) == ("delivered", 2)
    assert there.got[0].headers["x-serinus-delivery"] == there.got[1].headers["x-serinus-delivery"]


def test_it_is_given_up_after_about_an_hour(cast: Cast, there: Receiver) -> None:
    make(cast, there)
    there.answer = lambda handler: plain(handler, 500, b"no\0" * 1000)
    webhooks.emit(EVENT, {}, cast.red)
    for _ in range(MAX_ATTEMPTS):
        make_due()
        assert deliver_due() == 1
    make_due()
    assert deliver_due() == 0
    row = only()
    assert (row.state, row.attempt, row.status, len(row.response)) == ("given_up", MAX_ATTEMPTS, 500, 500)
    assert 50 * 60 <= sum(DELAYS_S) <= 65 * 60
    assert all(DELAYS_S[n - 1] * 0.9 <= delay_s(n) <= DELAYS_S[n - 1] * 1.1 for n in range(1, MAX_ATTEMPTS))


def test_a_redirect_is_not_followed(cast: Cast, there: Receiver) -> None:
    make(cast, there)
    there.answer = lambda handler: plain(handler, 307, Location=f"{there.url}/inside")
    webhooks.emit(EVENT, {}, cast.red)
    deliver_due()
    assert [got.path for got in there.got] == ["/hook?x=1"]
    assert (only().state, only().status, only().response) == (
        "pending", 307, "it answered by a redirect, which is not followed"
    )  # fmt: skip


@pytest.mark.parametrize("how", [dripping, endless], ids=["a head that never ends", "a body that never ends"])
def test_nobody_can_hold_it_up(cast: Cast, there: Receiver, how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make(cast, there)
    there.answer = how
    webhooks.emit(EVENT, {}, cast.red)
    begun = time.monotonic()
    deliver_due()
    assert time.monotonic() - begun < 8
    row = only()
    assert len(row.response) <= 500
    assert row.state == ("pending" if how is dripping else "delivered")
    if how is dripping:
        assert row.response == "no answer within 5 s"


def test_nobody_there_is_a_line_in_the_log_of_deliveries(cast: Cast, inside: None) -> None:
    with receiver() as gone:
        make(cast, gone)
    webhooks.emit(EVENT, {}, cast.red)
    deliver_due()
    assert (only().state, only().status) == ("pending", None)
    assert only().response == "it cannot be reached: ConnectError"


def test_inside_addresses_are_refused_when_made_and_when_sent(cast: Cast, settings: Any) -> None:
    with receiver() as there:
        with pytest.raises(InvalidInput, match="no address of the public internet"):
            make(cast, there)
        hook, _ = webhooks.create_webhook(actor=cast.actor("owner"), team=cast.red, url="https://hooks.example.com/")
        Webhook.objects.filter(pk=hook.pk).update(url=there.url.replace("127.0.0.1", "localhost"))
        webhooks.emit(EVENT, {}, cast.red)
        deliver_due()
        assert there.got == []
    assert only().status is None
    assert "localhost is no address of the public internet" in only().response


def test_a_worker_that_died_while_sending_loses_nothing(cast: Cast, there: Receiver) -> None:
    make(cast, there)
    webhooks.emit(EVENT, {}, cast.red)
    (claimed,) = webhook_delivery._claim()  # and then it is killed
    assert deliver_due() == 0, "the claim holds"
    assert claimed.attempt == 1
    WebhookDelivery.objects.update(next_at=Now() - CLAIM)
    assert deliver_due() == 1
    assert (only().state, only().attempt, len(there.got)) == ("delivered", 2, 1)


def test_a_late_result_of_an_old_claim_changes_nothing(cast: Cast, there: Receiver) -> None:
    from rollouts.webhook_sending import Answered

    make(cast, there)
    webhooks.emit(EVENT, {}, cast.red)
    (old,) = webhook_delivery._claim()
    WebhookDelivery.objects.update(next_at=Now() - CLAIM)
    webhook_delivery._claim()
    webhook_delivery._settle(old, Answered(500, "late", 1.0))
    assert (only().status, only().attempt) == (None, 2)


@pytest.mark.django_db(transaction=True)
def test_two_workers_never_send_one_delivery_twice(
    cast: Cast, there: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    make(cast, there)
    for _ in range(30):
        webhooks.emit(EVENT, {}, cast.red)

    def work() -> None:
        try:
            webhook_delivery._rounds()
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    ids = [got.headers["x-serinus-delivery"] for got in there.got]
    assert len(ids) == len(set(ids)) == 30
    assert set(WebhookDelivery.objects.values_list("state", "attempt")) == {("delivered", 1)}


def test_what_waits_for_one_that_is_switched_off_is_given_up(cast: Cast, there: Receiver) -> None:
    hook, _ = make(cast, there)
    webhooks.emit(EVENT, {}, cast.red)
    webhooks.change_webhook(actor=cast.actor("owner"), webhook=hook, enabled=False)
    assert deliver_due() == 0
    assert (only().state, only().response) == ("given_up", "the webhook was switched off")


def test_the_queue_of_one_webhook_is_bounded(cast: Cast, there: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "MAX_PENDING", 3)
    hook, _ = make(cast, there)
    assert [webhooks.emit(EVENT, {}, cast.red) for _ in range(5)] == [1, 1, 1, 0, 0]
    with pytest.raises(Conflict):
        webhooks.test_webhook(actor=cast.actor("owner"), webhook=hook)
    assert webhooks.emit(EVENT, {"words": "x" * 70_000}, cast.red) == 0


def test_old_deliveries_are_forgotten_but_for_those_that_wait(cast: Cast, there: Receiver) -> None:
    make(cast, there)
    for _ in range(3):
        webhooks.emit(EVENT, {}, cast.red)
    deliver_due()
    webhooks.emit(EVENT, {}, cast.red)
    WebhookDelivery.objects.update(at=Now() - timedelta(days=15))
    assert expire_deliveries() == 3
    assert only().state == "pending"


def test_rights_bounds_and_the_audit_trail(cast: Cast, there: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    hook, secret = make(cast, there)
    for who in ("developer", "teammate", "stranger"):
        with pytest.raises(Forbidden):
            webhooks.create_webhook(actor=cast.actor(who), team=cast.red, url=there.url)
        with pytest.raises(Forbidden):
            webhooks.delete_webhook(actor=cast.actor(who), webhook=hook)
    with pytest.raises(InvalidInput, match=r"no event 'rollout\.party'"):
        make(cast, there, events=["rollout.party"])
    monkeypatch.setattr(webhooks, "MAX_WEBHOOKS_PER_TEAM", 1)
    with pytest.raises(Conflict, match="delete one first"):
        make(cast, there)
    webhooks.delete_webhook(actor=cast.actor("owner"), webhook=hook)
    with pytest.raises(NotFound):
        webhooks.delete_webhook(actor=cast.actor("owner"), webhook=hook)
    entries = AuditEntry.objects.filter(object_kind="webhook").order_by("id")
    assert [entry.verb for entry in entries] == ["create_webhook", "delete_webhook"]
    told = json.dumps([[entry.before, entry.after] for entry in entries])
    assert secret not in told
    assert "hook?x=1" not in told, "the path may be a secret"


def test_by_the_api(cast: Cast, there: Receiver) -> None:
    owner = of(cast, "owner")
    made = owner("POST", "/api/webhooks/", {"url": there.url, "events": [EVENT]}, 201)
    assert made["secret"].startswith("whsec_")
    place = f"/api/webhooks/{made['id']}/"
    shown = owner("GET", place)
    assert "secret" not in shown
    assert shown == owner("GET", "/api/webhooks/")["results"][0]
    assert of(cast, "teammate")("GET", "/api/webhooks/")["results"] == []
    of(cast, "teammate")("GET", place, status=403)
    of(cast, "stranger")("GET", place, status=404)
    assert owner("PATCH", place, {"enabled": False, "events": ["*"]})["events"] == ["*"]
    ping = owner("POST", f"{place}test/", {}, 202)
    assert (ping["event"], ping["state"]) == ("ping", "pending")
    deliver_due()
    assert there.got[0].is_signed(made["secret"])
    (log,) = owner("GET", f"{place}deliveries/")["results"]
    assert (log["state"], log["status"], log["attempt"]) == ("delivered", 200, 1)
    for wrong in ({"url": "ftp://x/"}, {"url": there.url, "events": ["x"]}, {"url": there.url, "secret": "mine"}, {}):
        owner("POST", "/api/webhooks/", wrong, 400)
    owner("DELETE", place, status=204)
    owner("GET", place, status=404)


def test_a_rollout_tells_each_of_its_events_once_in_order(cast: Cast, there: Receiver) -> None:
    _, secret = make(cast, there)
    endpoint, _, candidate = stage(cast.actor("root"), of=cast.red)
    rollout = rollouts.start(
        endpoint=endpoint, version=candidate, plan=plans.TEMPLATES["fast"], actor=cast.actor("owner")
    )
    clock = Clock()
    drive(rollout, Controller(Word(PASS), clock=clock), clock)
    assert rollout.phase == "succeeded", rollout.words
    while deliver_due():
        pass
    told = sorted((json.loads(got.body) for got in there.got), key=lambda body: body["data"]["seq"])
    events = list(RolloutEvent.objects.filter(rollout=rollout).order_by("seq"))
    assert [body["event"] for body in told] == [f"rollout.{event.kind}" for event in events]
    assert {body["event"] for body in told} <= set(webhooks.EVENTS)
    assert all(got.is_signed(secret) for got in there.got)
    first, last = told[0]["data"], told[-1]["data"]
    assert (first["kind"], first["actor"], first["stable"], first["candidate"]) == ("started", "owner", 1, 2)
    assert (last["phase"], last["weights"]) == ("succeeded", {"1": 0, "2": 10_000} | {"mirror": 0})


@pytest.mark.django_db(transaction=True)
def test_a_real_worker_is_woken_and_one_that_is_killed_loses_nothing(
    cast: Cast, there: Receiver, services: Services, tmp_path: Path
) -> None:
    make(cast, there)
    options = {"redis_url": services.redis_url, "SERINUS_WEBHOOKS_ALLOW_PRIVATE": "1"}
    with celery_worker("control", tmp_path, services, **options) as first:
        webhooks.emit(EVENT, {"n": 0}, cast.red)
        until(lambda: len(there.got) == 1, "the worker is there", beat=True)
        webhooks.emit(EVENT, {"n": 1}, cast.red)
        until(lambda: len(there.got) == 2, "the wake-up alone brings the next one")
        until(lambda: WebhookDelivery.objects.filter(state="delivered").count() == 2, "that is written down")
        there.answer = lambda handler: time.sleep(4)
        webhooks.emit(EVENT, {"n": 2}, cast.red)
        until(lambda: len(there.got) == 3, "the third one is being sent", beat=True)
        first.kill()
        first.wait(10)
    there.answer = lambda handler: plain(handler, 200)
    assert WebhookDelivery.objects.filter(state="pending", attempt=1).count() == 1
    WebhookDelivery.objects.filter(state="pending").update(next_at=Now())  # its claim lapses
    with celery_worker("control", tmp_path, services, **options):
        until(lambda: WebhookDelivery.objects.filter(state="delivered").count() == 3, "it is sent again", beat=True)
    assert [json.loads(got.body)["data"]["n"] for got in there.got] == [0, 1, 2, 2]
    assert there.got[2].headers["x-serinus-delivery"] == there.got[3].headers["x-serinus-delivery"]


def until(true: Callable[[], object], what: str, *, beat: bool = False, timeout_s: float = 45.0) -> None:
    """beat: with the task that Celery's beat sends again and again."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        if beat:
            accounts.wakeups.send(webhooks.DELIVER)
        time.sleep(0.3)
