"""The control API's rollouts and plans: only those of the actor's teams exist for them."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api import actor
from accounts.models import Team
from accounts.pagination import KeysetPagination
from accounts.permissions import Actor, Verb, actor_of, visible
from accounts.serializers import StrictSerializer
from accounts.teams import team_for
from endpoints.models import Endpoint
from inference.errors import InvalidInput, NotFound
from registry.models import Version
from rollouts import actions, plans
from rollouts.models import Reading, Rollout, RolloutEvent, SavedPlan
from rollouts.phases import ACTIVE, REASONS
from rollouts.plans import Plan
from rollouts.preflight import preflight

MAX_EVENTS = 500
MAX_READINGS = 500


class RolloutSerializer(serializers.ModelSerializer[Rollout]):
    """A rollout. phase is one of pending, loading, smoke, progressing, paused, awaiting_approval, inconclusive,
    promoting, succeeded, aborting, rolled_back, failed; reason says why in one word, words in a sentence.
    """

    endpoint = serializers.CharField(source="endpoint_name")
    stable = serializers.IntegerField(source="stable.number")
    candidate = serializers.IntegerField(source="candidate.number")
    steps = serializers.SerializerMethodField()
    reason_words = serializers.SerializerMethodField()

    class Meta:
        model = Rollout
        fields = (
            "id", "endpoint", "stable", "candidate", "plan_name", "plan_number", "phase", "reason", "reason_words", "words",
            "step", "steps", "step_at", "phase_at", "weight_bp", "mirror_bp", "held", "approvals", "smoke", "preflight",
            "judgement", "judged_at", "is_rollback", "old_stage", "old_until", "creator", "created_at", "finished_at",
            "revision",
        )  # fmt: skip

    def get_steps(self, rollout: Rollout) -> list[str]:
        return [plans.words(step) for step in plans.read(rollout.plan).steps]

    def get_reason_words(self, rollout: Rollout) -> str:
        return REASONS.get(rollout.reason, "")


class RolloutEventSerializer(serializers.ModelSerializer[RolloutEvent]):
    """One transition, never rewritten. weights: version number -> basis points, and "mirror"."""

    class Meta:
        model = RolloutEvent
        fields = (
            "seq", "at", "actor_kind", "actor", "kind", "reason", "words", "phase_before", "phase_after", "step",
            "weights_before", "weights_after", "evidence",
        )  # fmt: skip


class ReadingSerializer(serializers.ModelSerializer[Reading]):
    class Meta:
        model = Reading
        fields = ("at", "weight_bp", "verdict", "findings")


class StartSerializer(StrictSerializer):
    """Move this endpoint's traffic to this version. plan: a name, or a plan itself. dry_run: only say what would be."""

    endpoint = serializers.CharField(max_length=64)
    version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    plan = serializers.JSONField(required=False)
    reason = serializers.CharField(required=False, max_length=500, allow_blank=True, default="")
    dry_run = serializers.BooleanField(required=False, default=False)


class WhySerializer(StrictSerializer):
    reason = serializers.CharField(required=False, max_length=400, allow_blank=True, default="")


class SavePlanSerializer(StrictSerializer):
    """A plan as JSON; team: whose it shall be, where the caller is in more than one."""

    plan = serializers.JSONField()
    team = serializers.CharField(required=False, max_length=64)


class ByTime(KeysetPagination):
    ordering = "-created_at"


class RolloutViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Rollout]):
    """Moving an endpoint's traffic to another version, step by step, with a judge."""

    serializer_class = RolloutSerializer
    pagination_class = ByTime
    lookup_value_regex = "[0-9a-f-]{36}"

    def get_queryset(self) -> QuerySet[Rollout]:
        rows = Rollout.objects.select_related("endpoint", "team", "stable__model", "candidate__model")
        rows = visible(actor_of(self.request), rows)
        query = self.request.query_params
        if name := query.get("endpoint"):
            rows = rows.filter(endpoint_name=name.replace("\0", "")[:64])
        if (wish := query.get("active")) in {"true", "1"}:
            rows = rows.filter(phase__in=ACTIVE)
        elif wish in {"false", "0"}:
            rows = rows.exclude(phase__in=ACTIVE)
        return rows

    @extend_schema(
        parameters=[
            OpenApiParameter("endpoint", OpenApiTypes.STR, description="only this endpoint's"),
            OpenApiParameter(
                "active", OpenApiTypes.BOOL, description="only those that have not ended, or only those that have"
            ),
        ]
    )
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Rollouts, the newest first."""
        return super().list(request, *args, **kwargs)

    @extend_schema(request=StartSerializer, responses={201: RolloutSerializer})
    def create(self, request: Request) -> Response:
        """Starts a rollout, or with `dry_run` says what it would do."""
        who, asked = actor_of(request), StartSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        wish = asked.validated_data
        endpoint = endpoint_named(who, wish["endpoint"])
        plan, number = asked_plan(endpoint.team, wish.get("plan"))
        version = version_numbered(endpoint, wish["version"])
        if wish["dry_run"]:
            found = preflight(endpoint, version, plan, reason=wish["reason"])
            steps = [plans.words(step) for step in plan.steps]
            return Response({"plan": plans.as_json(plan), "steps": steps, "preflight": found.record()})
        started = actions.start(
            endpoint=endpoint, version=version, plan=plan, plan_number=number, actor=who, reason=wish["reason"]
        )
        return Response(RolloutSerializer(started).data, status.HTTP_201_CREATED)

    @extend_schema(request=WhySerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def promote(self, request: Request, pk: str) -> Response:
        """On to the next step, whatever the judge says."""
        return self._act(request, actions.promote)

    @extend_schema(request=WhySerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def promote_full(self, request: Request, pk: str) -> Response:
        """All of the traffic to the candidate, as soon as its replicas carry it."""
        return self._act(request, actions.promote, full=True)

    @extend_schema(request=WhySerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, pk: str) -> Response:
        """Stays where it is; the guards stay armed."""
        return self._act(request, actions.pause)

    @extend_schema(request=WhySerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, pk: str) -> Response:
        """Goes on after a pause."""
        return self._act(request, actions.resume)

    @extend_schema(request=WhySerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def extend(self, request: Request, pk: str) -> Response:
        """Gives the step its whole time again."""
        return self._act(request, actions.extend)

    @extend_schema(request=WhySerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, pk: str) -> Response:
        """One approval of the step that asks for some."""
        return self._act(request, actions.approve)

    @extend_schema(request=WhySerializer, responses=RolloutSerializer)
    @action(detail=True, methods=["post"])
    def abort(self, request: Request, pk: str) -> Response:
        """All traffic back to the stable version, now."""
        return self._act(request, actions.abort)

    @extend_schema(
        parameters=[OpenApiParameter("after", OpenApiTypes.INT, description="only events with a larger seq")],
        responses=RolloutEventSerializer(many=True),
    )
    @action(detail=True, methods=["get"], pagination_class=None)
    def events(self, request: Request, pk: str) -> Response:
        """What happened, the oldest first, up to 500 at once."""
        after = _whole(request.query_params.get("after", "0"), "after")
        rows = RolloutEvent.objects.filter(rollout=self.get_object(), seq__gt=after)[:MAX_EVENTS]
        return Response(RolloutEventSerializer(rows, many=True).data)

    @extend_schema(responses=OpenApiTypes.OBJECT)
    @action(detail=True, methods=["get"])
    def guardrails(self, request: Request, pk: str) -> Response:
        """The judge's newest findings: estimate, interval, margin, verdict, and how many more requests are needed."""
        found = self.get_object()
        return Response({"judged_at": found.judged_at, **(found.judgement or {"verdict": "none", "findings": []})})

    @extend_schema(responses=ReadingSerializer(many=True))
    @action(detail=True, methods=["get"], pagination_class=None)
    def readings(self, request: Request, pk: str) -> Response:
        """What the judge found over time, thinned out to at most 500 readings."""
        rows = list(Reading.objects.filter(rollout=self.get_object()).order_by("at"))
        step = -(-len(rows) // MAX_READINGS) or 1
        return Response(ReadingSerializer(rows[::step], many=True).data)

    def _act(self, request: Request, do: Any, **more: Any) -> Response:
        asked = WhySerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        found = do(rollout=self.get_object(), actor=actor_of(request), reason=asked.validated_data["reason"], **more)
        return Response(RolloutSerializer(self.get_queryset().get(pk=found.pk)).data)


class Rollback(APIView):
    @extend_schema(request=WhySerializer, responses={201: RolloutSerializer})
    def post(self, request: Request, name: str) -> Response:
        """Back to the version that the newest rollout replaced, at once while its replicas are there."""
        who, asked = actor(request), WhySerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        found = actions.rollback(endpoint=endpoint_named(who, name), actor=who, reason=asked.validated_data["reason"])
        return Response(RolloutSerializer(found).data, status.HTTP_201_CREATED)


class Plans(APIView):
    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request) -> Response:
        """The templates, and the newest of each plan of the caller's teams."""
        who = actor(request)
        rows = visible(who, SavedPlan.objects.select_related("team").order_by("team_id", "name", "-number"))
        newest = rows.distinct("team_id", "name")
        told = [_plan(plan, team=None, number=0) for plan in plans.TEMPLATES.values()]
        return Response(told + [_plan(plans.read(row.plan), team=row.team.name, number=row.number) for row in newest])

    @extend_schema(request=SavePlanSerializer, responses={201: OpenApiTypes.OBJECT})
    def post(self, request: Request) -> Response:
        """Saves a plan: a new name, or the next number of one."""
        who, asked = actor(request), SavePlanSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        plan = plans.read(asked.validated_data["plan"])
        team = team_for(who, Verb.DEPLOY, asked.validated_data.get("team", ""))
        saved = actions.save_plan(team=team, plan=plan, actor=who)
        return Response(_plan(plan, team=saved.team.name, number=saved.number), status.HTTP_201_CREATED)


def asked_plan(team: Team, wish: object) -> tuple[Plan, int]:
    """A plan from what a request says: nothing (the standard one), a name, or a plan. Raises InvalidInput, NotFound."""
    if wish is None or wish == "":
        return plans.TEMPLATES[plans.DEFAULT_PLAN], 0
    if isinstance(wish, str):
        return actions.named_plan(team, wish)
    return plans.read(wish), 0


def endpoint_named(who: Actor, name: str) -> Endpoint:
    """Raises NotFound for what is not there, or not for this actor."""
    rows = visible(who, Endpoint.objects.select_related("team", "model"))
    found = rows.filter(name=name.replace("\0", "")).first()
    if found is None:
        raise NotFound(f"there is no endpoint '{name[:64]}'")
    return found


def version_numbered(endpoint: Endpoint, number: int) -> Version:
    """A version of the endpoint's model. Raises NotFound."""
    rows = Version.objects.select_related("model__team").filter(model=endpoint.model, number=number)
    found = rows.first()
    if found is None:
        raise NotFound(f"model '{endpoint.model.name}' has no version {number}")
    return found


def _plan(plan: Plan, *, team: str | None, number: int) -> dict[str, Any]:
    return {
        "name": plan.name, "team": team, "number": number, "description": plan.description,
        "steps": [plans.words(step) for step in plan.steps], "plan": plans.as_json(plan),
    }  # fmt: skip


def _whole(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidInput(f"{name} must be a whole number")
    return int(text)
