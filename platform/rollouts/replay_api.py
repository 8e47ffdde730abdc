"""The control API's recordings and replays of an endpoint: only those of the actor's teams exist for them."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, Max, Min, Sum
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api import actor
from accounts.serializers import StrictSerializer
from inference.protocol.compare import KINDS
from inference.protocol.records import MAX_RECORD_BYTES
from inference.protocol.routes import WEIGHT_TOTAL_BP, Comparison
from rollouts import replay
from rollouts.api import endpoint_named, version_numbered
from rollouts.replay_models import Replay
from rollouts.replay_report import judged
from telemetry.models import RecordedRequest

MAX_LISTED = 50


class RecordingSerializer(StrictSerializer):
    """Keep this share of the endpoint's requests with their answers, without their callers; 0 ends it."""

    share_bp = serializers.IntegerField(min_value=0, max_value=WEIGHT_TOTAL_BP)
    max_bytes = serializers.IntegerField(min_value=1, max_value=MAX_RECORD_BYTES, required=False, default=65_536)


class StartReplaySerializer(StrictSerializer):
    """Ask what was recorded of this version again. kind, tolerance, k: how answers are compared; requests: at most so
    many, the newest; max_drift_share: of the answers compared, how many may differ.
    """

    version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    kind = serializers.ChoiceField(choices=KINDS, required=False, default="auto")
    tolerance = serializers.FloatField(min_value=0, max_value=1, required=False, default=0.01)
    k = serializers.IntegerField(min_value=1, max_value=1000, required=False, default=5)
    requests = serializers.IntegerField(min_value=1, max_value=1000, required=False, default=1000)
    rate_per_s = serializers.FloatField(min_value=0.1, max_value=replay.MAX_RATE_PER_S, required=False, default=20.0)
    deadline_s = serializers.IntegerField(min_value=1, max_value=replay.MAX_DEADLINE_S, required=False, default=600)
    max_drift_share = serializers.FloatField(min_value=0, max_value=1, required=False, default=0.01)


class ReplaySerializer(serializers.ModelSerializer[Replay]):
    """A replay and its report so far. verdict: passed, failed, no_data or running."""

    endpoint = serializers.CharField(source="endpoint_name")
    version = serializers.IntegerField(source="candidate.number")
    verdict = serializers.SerializerMethodField()
    mean_distance = serializers.SerializerMethodField()
    latency = serializers.SerializerMethodField()

    class Meta:
        model = Replay
        fields = (
            "id", "endpoint", "version", "status", "verdict", "words", "comparison", "max_drift_share", "rate_per_s",
            "total", "cursor", "requests", "skipped", "errors", "error_counts", "compared", "drifted", "mean_distance",
            "latency", "worst", "creator", "created_at", "deadline_at", "finished_at",
        )  # fmt: skip

    def get_verdict(self, row: Replay) -> str:
        if row.status in replay.ACTIVE:
            return "running"
        return "failed" if row.status == Replay.Status.FAILED else judged(replay.report_of(row), row.max_drift_share)[0]

    def get_mean_distance(self, row: Replay) -> float | None:
        return row.drift_sum / row.compared if row.compared else None

    def get_latency(self, row: Replay) -> dict[str, dict[str, float | None]]:
        return replay.report_of(row).quantiles()


class RecordingView(APIView):
    @extend_schema(request=RecordingSerializer, responses=OpenApiTypes.OBJECT)
    def post(self, request: Request, name: str) -> Response:
        """Begins or ends keeping a share of the endpoint's requests."""
        who, asked = actor(request), RecordingSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        found = replay.record_requests(endpoint=endpoint_named(who, name), actor=who, **asked.validated_data)
        return Response(_recorded(found.name, found.recording))


class RecordedView(APIView):
    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request, name: str) -> Response:
        """How much is recorded of the endpoint, since when, and whether recording is on."""
        found = endpoint_named(actor(request), name)
        return Response(_recorded(found.name, found.recording))

    @extend_schema(responses=OpenApiTypes.OBJECT)
    def delete(self, request: Request, name: str) -> Response:
        """Deletes everything that was recorded of the endpoint."""
        who = actor(request)
        return Response({"deleted": replay.purge_recorded(endpoint=endpoint_named(who, name), actor=who)})


class ReplaysView(APIView):
    @extend_schema(responses=ReplaySerializer(many=True))
    def get(self, request: Request, name: str) -> Response:
        """The endpoint's replays, the newest first."""
        rows = Replay.objects.select_related("candidate").filter(endpoint=endpoint_named(actor(request), name))
        return Response(ReplaySerializer(rows.order_by("-created_at")[:MAX_LISTED], many=True).data)

    @extend_schema(request=StartReplaySerializer, responses={201: ReplaySerializer})
    def post(self, request: Request, name: str) -> Response:
        """Asks recorded requests of a version again, and compares the answers with those recorded."""
        who, asked = actor(request), StartReplaySerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        wish = dict(asked.validated_data)
        endpoint = endpoint_named(who, name)
        found = replay.start_replay(
            endpoint=endpoint,
            version=version_numbered(endpoint, wish.pop("version")),
            actor=who,
            comparison=Comparison(wish.pop("kind"), wish.pop("tolerance"), wish.pop("k")),
            **wish,
        )
        return Response(ReplaySerializer(found).data, status.HTTP_201_CREATED)


def _recorded(name: str, recording: Any) -> dict[str, Any]:
    rows = RecordedRequest.objects.filter(endpoint=name)
    found = rows.aggregate(requests=Count("id"), bytes=Sum("size_bytes"), oldest=Min("at"), newest=Max("at"))
    return {**found, "bytes": found["bytes"] or 0, "recording": recording}
