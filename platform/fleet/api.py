"""The control API's hosts, replicas and deployments. Hosts belong to all; replicas are seen by their model's team."""

from __future__ import annotations

from django.db.models import BooleanField, Count, ExpressionWrapper, Q, QuerySet
from django.db.models.functions import Now
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.pagination import KeysetPagination
from accounts.permissions import Verb, actor_of, require, visible
from accounts.serializers import StrictSerializer
from fleet import actions
from fleet.models import Deployment, Device, Host, Replica
from inference.errors import NotFound
from registry.models import Version

TEAM = "deployment__version__model__team"


class DeviceSerializer(serializers.ModelSerializer[Device]):
    class Meta:
        model = Device
        fields = ("name", "kind", "description", "memory_total_bytes", "memory_free_bytes", "utilisation", "seen_at")


class HostSerializer(serializers.ModelSerializer[Host]):
    devices = DeviceSerializer(many=True, read_only=True)
    replicas = serializers.IntegerField(source="replica_count", read_only=True)
    alive = serializers.BooleanField(read_only=True)

    class Meta:
        model = Host
        fields = (
            "name", "alive", "draining", "problem", "agent_pid", "supervisor_pid", "standby_ready", "allow_code", "cpus", "replicas", "devices",
            "lease_until", "created_at",
        )  # fmt: skip


class AdapterStateSerializer(serializers.Serializer[dict[str, str]]):
    """Where a LoRA adapter stands in this replica: waiting, loaded, failed or leaving. digest: of its version."""

    name = serializers.CharField()
    digest = serializers.CharField()
    state = serializers.CharField()
    message = serializers.CharField()


class ReplicaSerializer(serializers.ModelSerializer[Replica]):
    model = serializers.CharField(source="deployment.version.model.name", read_only=True)
    version = serializers.IntegerField(source="deployment.version.number", read_only=True)
    host = serializers.CharField(source="host_id", read_only=True, allow_null=True)
    adapters = AdapterStateSerializer(many=True, read_only=True)

    class Meta:
        model = Replica
        fields = (
            "id", "model", "version", "host", "device", "generation", "wanted", "phase", "pid", "restarts", "message",
            "memory_bytes", "device_memory_bytes", "device_memory_share", "compiles_after_ready", "queue_depth",
            "adapters", "ready_at", "created_at",
        )  # fmt: skip


class DeploymentSerializer(serializers.ModelSerializer[Deployment]):
    model = serializers.CharField(source="version.model.name", read_only=True)
    version = serializers.IntegerField(source="version.number", read_only=True)
    ready = serializers.IntegerField(source="ready_count", read_only=True)

    class Meta:
        model = Deployment
        fields = ("id", "model", "version", "replicas", "ready", "device", "reason", "created_at")


class ScaleSerializer(StrictSerializer):
    """How many replicas, and optionally on which device new ones go."""

    replicas = serializers.IntegerField(min_value=0, max_value=actions.MAX_REPLICAS)
    device = serializers.CharField(max_length=16, required=False)


class WishSerializer(ScaleSerializer):
    """A version, and how many replicas it shall have."""

    model = serializers.CharField(max_length=64)
    version = serializers.IntegerField(min_value=1, max_value=2**31 - 1)


class ByName(KeysetPagination):
    ordering = "name"


class NewestFirst(KeysetPagination):
    ordering = "-created_at"


class HostViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Host]):
    """Machines that serve replicas."""

    queryset = Host.objects.none()
    serializer_class = HostSerializer
    pagination_class = ByName
    lookup_field = "name"
    lookup_value_regex = "[^/]{1,64}"

    def get_queryset(self) -> QuerySet[Host]:
        require(actor_of(self.request), Verb.VIEW)
        alive = ExpressionWrapper(Q(lease_until__gt=Now()), output_field=BooleanField())
        return Host.objects.annotate(replica_count=Count("replicas"), alive=alive).prefetch_related("devices")

    @extend_schema(request=None, responses=HostSerializer)
    @action(detail=True, methods=["post"])
    def drain(self, request: Request, name: str) -> Response:
        """Takes the host out of service; its replicas get successors elsewhere first."""
        return self._set_draining(request, name, draining=True)

    @extend_schema(request=None, responses=HostSerializer)
    @action(detail=True, methods=["post"])
    def undrain(self, request: Request, name: str) -> Response:
        """Puts the host back into service."""
        return self._set_draining(request, name, draining=False)

    def _set_draining(self, request: Request, name: str, *, draining: bool) -> Response:
        host = actions.host_named(name)
        actions.set_draining(host=host, draining=draining, actor=actor_of(request))
        return Response(HostSerializer(self.get_queryset().get(name=name)).data)


class ReplicaViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Replica]):
    """Processes that serve a version."""

    serializer_class = ReplicaSerializer
    pagination_class = NewestFirst
    lookup_value_regex = "[0-9a-f-]{36}"

    def get_queryset(self) -> QuerySet[Replica]:
        rows = Replica.objects.select_related("deployment__version__model__team")
        return visible(actor_of(self.request), rows, TEAM)

    @extend_schema(request=None, responses=ReplicaSerializer)
    @action(detail=True, methods=["post"])
    def restart(self, request: Request, pk: str) -> Response:
        """Replaces the replica's process."""
        replica = actions.restart_replica(replica=self.get_object(), actor=actor_of(request))
        return Response(ReplicaSerializer(replica).data)


class DeploymentViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Deployment]):
    """Wishes: which version shall have how many replicas, and why a wish is not met."""

    serializer_class = DeploymentSerializer
    lookup_value_regex = "[0-9]{1,18}"

    def get_queryset(self) -> QuerySet[Deployment]:
        ready = Count("replica_set", filter=Q(replica_set__phase="ready", replica_set__wanted="run"))
        rows = Deployment.objects.annotate(ready_count=ready).select_related("version__model__team")
        return visible(actor_of(self.request), rows, "version__model__team")

    @extend_schema(request=WishSerializer, responses={201: DeploymentSerializer})
    def create(self, request: Request) -> Response:
        """Wishes replicas for a version, or changes their number."""
        asked = WishSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        wish = dict(asked.validated_data)
        actor, name, number = actor_of(request), wish.pop("model"), wish.pop("version")
        rows = Version.objects.select_related("model__team").filter(model__name=name, number=number)
        version = visible(actor, rows, "model__team").first()
        if version is None:
            raise NotFound(f"there is no version {number} of this model")
        made = actions.scale_version(version=version, actor=actor, **wish)
        return Response(DeploymentSerializer(self.get_queryset().get(pk=made.pk)).data, status.HTTP_201_CREATED)

    @extend_schema(request=ScaleSerializer, responses=DeploymentSerializer)
    @action(detail=True, methods=["put"])
    def scale(self, request: Request, pk: str) -> Response:
        """Changes the number of replicas."""
        asked = ScaleSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        actions.scale(deployment=self.get_object(), actor=actor_of(request), **asked.validated_data)
        row = self.get_queryset().filter(pk=pk).first()
        if row is None:
            raise NotFound
        return Response(DeploymentSerializer(row).data)
