"""Control API of webhooks: reads rows, calls actions, decides nothing."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api import KeysetView, actor
from accounts.pagination import KeysetPagination
from accounts.permissions import Actor, Verb, require, visible
from accounts.serializers import StrictSerializer, read, slug_field
from accounts.teams import team_for
from inference.errors import NotFound
from rollouts import webhooks
from rollouts.webhook_models import Webhook, WebhookDelivery


class NewWebhook(StrictSerializer):
    """events: names such as rollout.succeeded, none for all; team: the caller's only one when left out."""

    url = serializers.CharField(max_length=1000)
    events = serializers.ListField(
        child=serializers.CharField(max_length=64), required=False, default=list, max_length=64
    )
    team = slug_field(required=False, default="")


class WebhookChange(StrictSerializer):
    url = serializers.CharField(max_length=1000, required=False)
    events = serializers.ListField(child=serializers.CharField(max_length=64), required=False, max_length=64)
    enabled = serializers.BooleanField(required=False)


class WebhookShown(serializers.ModelSerializer[Webhook]):
    """Never its secret."""

    team = serializers.CharField(source="team.name")

    class Meta:
        model = Webhook
        fields = ("id", "team", "url", "events", "enabled", "creator", "created_at")


class NewWebhookShown(WebhookShown):
    """The secret is in the answer to the request that made the webhook, and nowhere else."""

    secret = serializers.CharField()

    class Meta(WebhookShown.Meta):
        fields = (*WebhookShown.Meta.fields, "secret")  # type: ignore[assignment]  # longer, on purpose


class DeliveryShown(serializers.ModelSerializer[WebhookDelivery]):
    """state: pending, delivered or given_up; next_at: of the next attempt, while it is pending."""

    class Meta:
        model = WebhookDelivery
        fields = (
            "id", "event", "body", "attempt", "status", "response", "took_ms", "state", "at", "next_at", "done_at"
        )  # fmt: skip


def webhook_of(who: Actor, pk: str | int) -> Webhook:
    """Raises NotFound for what is not there and for what others own alike, Forbidden for who may only look at the team."""
    rows = visible(who, Webhook.objects.select_related("team"))
    found = rows.filter(pk=int(pk)).first()
    if found is None:
        raise NotFound(f"there is no webhook {pk}")
    require(who, Verb.OPERATE, found)
    return found


class Webhooks(KeysetView):
    @extend_schema(responses=WebhookShown(many=True))
    def get(self, request: Request) -> Response:
        """Of the teams in which the caller may operate."""
        rows = visible(actor(request), Webhook.objects.select_related("team"), verb=Verb.OPERATE)
        return self.page(request, rows, WebhookShown)

    @extend_schema(request=NewWebhook, responses={201: NewWebhookShown})
    def post(self, request: Request) -> Response:
        """Make one. Its secret, with which deliveries are signed, is in this answer and nowhere else."""
        wanted, who = read(NewWebhook, request), actor(request)
        team = team_for(who, Verb.OPERATE, wanted.pop("team"))
        made, _ = webhooks.create_webhook(actor=who, team=team, **wanted)
        return Response(NewWebhookShown(made).data, 201, headers={"Location": f"/api/webhooks/{made.pk}/"})


class WebhookById(APIView):
    @extend_schema(responses=WebhookShown)
    def get(self, request: Request, webhook: str) -> Response:
        return Response(WebhookShown(webhook_of(actor(request), webhook)).data)

    @extend_schema(request=WebhookChange, responses=WebhookShown)
    def patch(self, request: Request, webhook: str) -> Response:
        who = actor(request)
        found = webhook_of(who, webhook)
        return Response(
            WebhookShown(webhooks.change_webhook(actor=who, webhook=found, **read(WebhookChange, request))).data
        )

    @extend_schema(responses={204: None})
    def delete(self, request: Request, webhook: str) -> Response:
        """With the log of its deliveries."""
        who = actor(request)
        webhooks.delete_webhook(actor=who, webhook=webhook_of(who, webhook))
        return Response(status=204)


class TestWebhook(APIView):
    @extend_schema(request=None, responses={202: DeliveryShown})
    def post(self, request: Request, webhook: str) -> Response:
        """Send the event "ping" to it; how that went is in its deliveries a moment later."""
        who = actor(request)
        made = webhooks.test_webhook(actor=who, webhook=webhook_of(who, webhook))
        return Response(DeliveryShown(made).data, 202)


class ByTime(KeysetPagination):
    ordering = ("-at", "id")  # type: ignore[assignment]  # DRF takes both


class Deliveries(APIView):
    @extend_schema(responses=DeliveryShown(many=True))
    def get(self, request: Request, webhook: str) -> Response:
        """What was sent, what waits and what was given up, the newest first."""
        rows: Any = WebhookDelivery.objects.filter(webhook=webhook_of(actor(request), webhook))
        pages = ByTime()
        found: Any = pages.paginate_queryset(rows, request, view=self)
        return pages.get_paginated_response(DeliveryShown(found, many=True).data)
