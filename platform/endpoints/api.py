"""The control API's endpoints: only those of the actor's teams exist for them."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.pagination import KeysetPagination
from accounts.permissions import Actor, actor_of, visible
from accounts.serializers import StrictSerializer
from endpoints import actions, adapters
from endpoints.models import Adapter, Endpoint, Variant
from fleet.actions import MAX_REPLICAS
from fleet.models import Deployment, Replica
from inference.errors import InvalidInput, NotFound
from inference.protocol.routes import WEIGHT_TOTAL_BP
from registry.models import Version
from telemetry import queries

MAX_METRICS_S = 24 * 3600


class VariantSerializer(serializers.ModelSerializer[Variant]):
    """A version behind the endpoint, with its share and how its replicas stand: of a pipeline, those of its steps."""

    version = serializers.IntegerField(source="version.number")
    role = serializers.CharField()
    replicas = serializers.SerializerMethodField()
    ready_replicas = serializers.SerializerMethodField()
    device = serializers.SerializerMethodField()
    reason = serializers.SerializerMethodField()

    class Meta:
        model = Variant
        fields = ("version", "weight_bp", "role", "replicas", "ready_replicas", "device", "reason")

    def _wishes(self, variant: Variant) -> list[Deployment | None]:
        """The wish for the version; for a pipeline, those for its steps' versions."""
        steps = {step.version_id: step.version for step in variant.version.steps.all()}
        return [getattr(version, "deployment", None) for version in steps.values() or [variant.version]]

    def get_replicas(self, variant: Variant) -> int:
        return min(wish.replicas if wish else 0 for wish in self._wishes(variant))

    def get_ready_replicas(self, variant: Variant) -> int:
        return min(_ready(wish) for wish in self._wishes(variant))

    def get_device(self, variant: Variant) -> str:
        return ", ".join(sorted({wish.device for wish in self._wishes(variant) if wish}))

    def get_reason(self, variant: Variant) -> str:
        return next((wish.reason for wish in self._wishes(variant) if wish and wish.reason), "")


def _ready(wish: Deployment | None) -> int:
    rows: list[Replica] = list(wish.replica_set.all()) if wish else []
    return sum(row.wanted == "run" and row.phase == "ready" for row in rows)


class AdapterSerializer(serializers.ModelSerializer[Adapter]):
    """A LoRA adapter that clients name ENDPOINT:NAME. base: the version here that it changes; loaded, replicas: in how
    many of its ready replicas it is.
    """

    model = serializers.CharField(source="version.model.name")
    version = serializers.IntegerField(source="version.number")
    base = serializers.IntegerField(source="variant.version.number")
    state = serializers.SerializerMethodField()
    loaded = serializers.SerializerMethodField()
    replicas = serializers.SerializerMethodField()
    reason = serializers.SerializerMethodField()

    class Meta:
        model = Adapter
        fields = ("name", "model", "version", "base", "state", "loaded", "replicas", "reason")

    def _standing(self, adapter: Adapter) -> adapters.Standing:
        wish: Deployment | None = getattr(adapter.variant.version, "deployment", None)
        return adapters.standing(adapter, wish.replica_set.all() if wish else [])

    def get_state(self, adapter: Adapter) -> str:
        return self._standing(adapter).state

    def get_loaded(self, adapter: Adapter) -> int:
        return self._standing(adapter).loaded

    def get_replicas(self, adapter: Adapter) -> int:
        return self._standing(adapter).replicas

    def get_reason(self, adapter: Adapter) -> str:
        return self._standing(adapter).reason


class EndpointSerializer(serializers.ModelSerializer[Endpoint]):
    model = serializers.CharField(source="model.name")
    team = serializers.CharField(source="team.name")
    variants = VariantSerializer(many=True)
    adapters = serializers.SerializerMethodField()

    class Meta:
        model = Endpoint
        fields = (
            "name", "model", "team", "access", "may_pin", "revision", "timeout_ms", "queue_limit", "variants", "adapters", "created_at"
        )  # fmt: skip

    @extend_schema_field(AdapterSerializer(many=True))
    def get_adapters(self, endpoint: Endpoint) -> Any:
        rows = [adapter for variant in endpoint.variants.all() for adapter in variant.adapters.all()]
        return AdapterSerializer(rows, many=True).data


class DeploySerializer(StrictSerializer):
    """Put this version behind this name; without `name`, behind its model's."""

    name = serializers.CharField(required=False, max_length=64)
    model = serializers.CharField(max_length=64)
    version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    replicas = serializers.IntegerField(min_value=0, max_value=MAX_REPLICAS, default=1)
    device = serializers.CharField(max_length=16, default="any")
    weight_bp = serializers.IntegerField(min_value=0, max_value=WEIGHT_TOTAL_BP, required=False)
    access = serializers.ChoiceField(choices=Endpoint.Access.choices, default=Endpoint.Access.KEY)


class WeightsSerializer(StrictSerializer):
    """Version number -> basis points, summing to 10,000; `revision` guards against somebody else's change.

    force: give traffic even to a version without a ready replica.
    """

    weights = serializers.DictField(
        child=serializers.IntegerField(min_value=0, max_value=WEIGHT_TOTAL_BP), allow_empty=False
    )
    revision = serializers.IntegerField(required=False, min_value=1)
    reason = serializers.CharField(required=False, max_length=500, allow_blank=True, default="")
    force = serializers.BooleanField(required=False, default=False)

    def validate_weights(self, weights: dict[str, int]) -> dict[int, int]:
        if not all(number.isascii() and number.isdigit() and len(number) < 10 for number in weights):
            raise serializers.ValidationError("keys must be version numbers")
        return {int(number): share for number, share in weights.items()}


class AccessSerializer(StrictSerializer):
    """Who may call. may_pin: whether callers may choose a version by the header X-Model-Version."""

    access = serializers.ChoiceField(choices=Endpoint.Access.choices)
    may_pin = serializers.BooleanField(required=False)
    revision = serializers.IntegerField(required=False, min_value=1)


class AttachSerializer(StrictSerializer):
    """Have the replicas load this adapter; without `name` it has its model's."""

    model = serializers.CharField(max_length=64)
    version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    name = serializers.CharField(required=False, max_length=64)
    revision = serializers.IntegerField(required=False, min_value=1)


class UndeploySerializer(StrictSerializer):
    version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    revision = serializers.IntegerField(required=False, min_value=1)


class ByName(KeysetPagination):
    ordering = "name"


class EndpointViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Endpoint]):
    """Public names behind which versions of one model answer."""

    serializer_class = EndpointSerializer
    pagination_class = ByName
    lookup_field = "name"
    lookup_value_regex = "[A-Za-z0-9_-]{1,64}"

    def get_queryset(self) -> QuerySet[Endpoint]:
        rows = Endpoint.objects.select_related("team", "model").prefetch_related(
            "variants__version__deployment__replica_set",
            "variants__version__steps__version__deployment__replica_set",
            "variants__adapters__version__model",
        )
        return visible(actor_of(self.request), rows)

    @extend_schema(request=DeploySerializer, responses={201: EndpointSerializer})
    def create(self, request: Request) -> Response:
        """Deploys a version, making the endpoint if there is none of that name."""
        asked = DeploySerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        return self._deploy(actor_of(request), dict(asked.validated_data))

    @extend_schema(request=DeploySerializer, responses={201: EndpointSerializer})
    @action(detail=True, methods=["post"])
    def deploy(self, request: Request, name: str) -> Response:
        """Deploys a version of its model behind this endpoint."""
        endpoint = self.get_object()
        asked = DeploySerializer(data={**_mapping(request.data), "name": name, "model": endpoint.model.name})
        asked.is_valid(raise_exception=True)
        return self._deploy(actor_of(request), dict(asked.validated_data))

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, name: str) -> Response:
        """Removes the name; its versions stay in the registry."""
        actions.delete_endpoint(endpoint=self.get_object(), actor=actor_of(request))
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(request=WeightsSerializer, responses=EndpointSerializer)
    @action(detail=True, methods=["put"])
    def weights(self, request: Request, name: str) -> Response:
        """Splits the traffic between the endpoint's versions."""
        asked = WeightsSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        actions.set_weights(endpoint=self.get_object(), actor=actor_of(request), **asked.validated_data)
        return self._answer(name)

    @extend_schema(request=AccessSerializer, responses=EndpointSerializer)
    @action(detail=True, methods=["put"])
    def access(self, request: Request, name: str) -> Response:
        """Opens the endpoint to everybody, or to key holders only."""
        asked = AccessSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        actions.set_access(endpoint=self.get_object(), actor=actor_of(request), **asked.validated_data)
        return self._answer(name)

    @extend_schema(request=UndeploySerializer, responses=EndpointSerializer)
    @action(detail=True, methods=["post"])
    def undeploy(self, request: Request, name: str) -> Response:
        """Takes a version away; it must have no traffic, unless it is the only one."""
        asked = UndeploySerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        wish = dict(asked.validated_data)
        actions.undeploy(endpoint=self.get_object(), number=wish.pop("version"), actor=actor_of(request), **wish)
        return self._answer(name)

    @extend_schema(request=AttachSerializer, responses={201: EndpointSerializer})
    @action(detail=True, methods=["post"], url_path="adapters")
    def attach(self, request: Request, name: str) -> Response:
        """Adds a LoRA adapter to the version that it changes, while that serves: clients name it ENDPOINT:NAME."""
        endpoint = self.get_object()
        asked = AttachSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        wish = dict(asked.validated_data)
        version = _version(actor_of(request), wish.pop("model"), wish.pop("version"))
        adapters.attach(endpoint=endpoint, version=version, actor=actor_of(request), **wish)
        return self._answer(name, status.HTTP_201_CREATED)

    @extend_schema(
        parameters=[OpenApiParameter("adapter", OpenApiTypes.STR, OpenApiParameter.PATH, description="its name here")],
        responses=EndpointSerializer,
    )
    @action(detail=True, methods=["delete"], url_path="adapters/(?P<adapter>[A-Za-z0-9_-]{1,64})")
    def detach(self, request: Request, name: str, adapter: str) -> Response:
        """Takes a LoRA adapter away; what began with it ends with it."""
        adapters.detach(endpoint=self.get_object(), name=adapter, actor=actor_of(request))
        return self._answer(name)

    @extend_schema(
        parameters=[OpenApiParameter("seconds", OpenApiTypes.INT, description="how far back, up to a day")],
        responses=OpenApiTypes.OBJECT,
    )
    @action(detail=True, methods=["get"])
    def metrics(self, request: Request, name: str) -> Response:
        """Requests, errors and latency by version: a series and its sum."""
        endpoint = self.get_object()
        text = request.query_params.get("seconds", "300")
        if not (text.isascii() and text.isdigit() and len(text) < 10) or not 1 <= int(text) <= MAX_METRICS_S:
            raise InvalidInput(f"seconds must be a whole number from 1 to {MAX_METRICS_S}")
        seconds = int(text)
        series = queries.series(endpoint.name, seconds)
        return Response({"step_s": queries.step_s(seconds), "series": series,
                         "summary": queries.summary(endpoint.name, seconds)})  # fmt: skip

    def _deploy(self, actor: Actor, asked: dict[str, Any]) -> Response:
        version = _version(actor, asked.pop("model"), asked.pop("version"))
        name = asked.pop("name", None) or version.model.name
        actions.deploy(version=version, endpoint_name=name, actor=actor, **asked)
        return self._answer(name, status.HTTP_201_CREATED)

    def _answer(self, name: str, code: int = status.HTTP_200_OK) -> Response:
        return Response(EndpointSerializer(self.get_queryset().get(name=name)).data, code)


def _version(actor: Actor, model: str, number: int) -> Version:
    """Raises NotFound for what is not there, or not for this actor."""
    versions = Version.objects.select_related("model__team").filter(model__name=model, number=number)
    version = visible(actor, versions, "model__team").first()
    if version is None:
        raise NotFound(f"there is no version {number} of this model")
    return version


def _mapping(data: object) -> dict[str, object]:
    """Raises InvalidInput for a body that is no JSON object."""
    if not isinstance(data, dict):
        raise InvalidInput("the body must be a JSON object")
    return data
