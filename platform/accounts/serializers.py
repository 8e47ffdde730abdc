"""Shapes of the accounts API. Unknown fields are refused: a typo must not pass for a default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from django.core.validators import RegexValidator
from rest_framework import serializers
from rest_framework.request import Request

from accounts.models import ApiKey, AuditEntry, Role, Team, User
from accounts.names import SLUG, USERNAME

S = TypeVar("S", bound="StrictSerializer")


class StrictSerializer(serializers.Serializer[Any]):
    """Takes only the fields it names."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping) and (unknown := sorted(set(data) - set(self.fields))):
            raise serializers.ValidationError({str(name)[:100]: ["There is no such field."] for name in unknown})
        return super().to_internal_value(data)


def read(serializer: type[StrictSerializer], request: Request) -> dict[str, Any]:
    """The request's body, checked. Raises DRF's ValidationError."""
    checked = serializer(data=request.data)
    checked.is_valid(raise_exception=True)
    return dict(checked.validated_data)


def read_query(serializer: type[StrictSerializer], request: Request) -> dict[str, Any]:
    """The query's filters, checked; what pages need stands beside them."""
    paging = {"cursor", "page_size", "format"}
    checked = serializer(data={name: value for name, value in request.query_params.items() if name not in paging})
    checked.is_valid(raise_exception=True)
    return dict(checked.validated_data)


def slug_field(**options: Any) -> serializers.CharField:
    return serializers.CharField(max_length=64, validators=[RegexValidator(rf"^{SLUG}\Z")], **options)


class NewKey(StrictSerializer):
    """endpoints: names, or ["*"] for all of the team; team: the caller's only one when left out. Rates: 0 for no bound."""

    name = serializers.CharField(max_length=100)
    team = slug_field(required=False, default="")
    role = serializers.ChoiceField(Role.choices, default=Role.VIEWER)
    endpoints = serializers.ListField(child=serializers.CharField(max_length=64), default=lambda: ["*"], max_length=200)
    expires_at = serializers.DateTimeField(required=False, allow_null=True, default=None)
    platform_admin = serializers.BooleanField(default=False)
    requests_per_s = serializers.FloatField(default=0.0)
    rows_per_s = serializers.FloatField(default=0.0)


class NewTeam(StrictSerializer):
    name = slug_field()


class NewRole(StrictSerializer):
    role = serializers.ChoiceField(Role.choices)


class NewUser(StrictSerializer):
    username = serializers.CharField(max_length=150, validators=[RegexValidator(rf"^{USERNAME}\Z")])
    password = serializers.CharField(max_length=1000, trim_whitespace=False)
    email = serializers.EmailField(required=False, default="", allow_blank=True)
    superuser = serializers.BooleanField(default=False)


class NewPassword(StrictSerializer):
    """current: needed to change one's own."""

    password = serializers.CharField(max_length=1000, trim_whitespace=False)
    current = serializers.CharField(max_length=1000, trim_whitespace=False, required=False, default="")


class Reason(StrictSerializer):
    reason = serializers.CharField(max_length=500, required=False, default="", allow_blank=True)


class AuditQuery(StrictSerializer):
    verb = serializers.CharField(max_length=64, required=False)
    actor = serializers.CharField(max_length=200, required=False)
    object_kind = serializers.CharField(max_length=32, required=False)
    object_name = serializers.CharField(max_length=200, required=False)
    team = slug_field(required=False)
    since = serializers.DateTimeField(required=False)
    until = serializers.DateTimeField(required=False)


class ExplainQuery(StrictSerializer):
    """actor: "user:NAME" or "key:ID", the caller when left out; object: "team:NAME", "model:NAME", ..."""

    actor = serializers.CharField(max_length=200, required=False, default="")
    verb = serializers.CharField(max_length=32)
    object = serializers.CharField(max_length=200, required=False, default="")


class NewRates(StrictSerializer):
    """What is left out stays as it is; 0 takes the bound away."""

    requests_per_s = serializers.FloatField(required=False)
    rows_per_s = serializers.FloatField(required=False)


class KeyShown(serializers.ModelSerializer[ApiKey]):
    team = serializers.CharField(source="team.name")
    created_by = serializers.CharField(source="created_by.username", default=None)

    class Meta:
        model = ApiKey
        fields = (
            "id", "name", "team", "role", "platform_admin", "endpoints", "created_by", "created_at", "expires_at",
            "revoked_at", "last_used_at", "requests_per_s", "rows_per_s",
        )  # fmt: skip


class NewKeyShown(KeyShown):
    """With the token, which is shown this once."""

    token = serializers.CharField(default="")

    class Meta(KeyShown.Meta):
        fields = (*KeyShown.Meta.fields, "token")  # type: ignore[assignment]  # one longer, on purpose


class MemberShown(serializers.Serializer[Any]):
    username = serializers.CharField(source="user.username")
    role = serializers.CharField()


class TeamShown(serializers.ModelSerializer[Team]):
    members = MemberShown(source="memberships", many=True)

    class Meta:
        model = Team
        fields = ("name", "created_at", "members")


class RoleShown(serializers.Serializer[Any]):
    team = serializers.CharField(source="team.name")
    role = serializers.CharField()


class UserShown(serializers.ModelSerializer[User]):
    teams = RoleShown(source="memberships", many=True)
    superuser = serializers.BooleanField(source="is_superuser")
    active = serializers.BooleanField(source="is_active")

    class Meta:
        model = User
        fields = ("username", "email", "superuser", "active", "date_joined", "last_login", "teams")


class AuditShown(serializers.ModelSerializer[AuditEntry]):
    team = serializers.CharField(source="team.name", default=None)

    class Meta:
        model = AuditEntry
        fields = (
            "id", "at", "actor_kind", "actor", "request_id", "verb", "object_kind", "object_name", "team", "before",
            "after", "reason",
        )  # fmt: skip
