"""Shapes of the registry API. Unknown fields are refused."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from accounts.serializers import Reason, StrictSerializer, slug_field
from registry.content import MAX_FILES
from registry.conversions import conversion_of
from registry.models import AliasChange, Model, ValidationRun, Version, VersionStatus


class NewModel(StrictSerializer):
    name = slug_field()
    team = slug_field(required=False, default="")
    task = serializers.CharField(max_length=64, required=False, default="", allow_blank=True)
    description = serializers.CharField(max_length=20_000, required=False, default="", allow_blank=True)


class ModelChange(StrictSerializer):
    task = serializers.CharField(max_length=64, required=False, allow_blank=True)
    description = serializers.CharField(max_length=20_000, required=False, allow_blank=True)


class NamedFile(StrictSerializer):
    """A file of the version: its path, and either a finished upload's id or the sha256 of content already here."""

    path = serializers.CharField(max_length=512, trim_whitespace=False)
    upload = serializers.CharField(max_length=200, required=False)
    sha256 = serializers.RegexField(r"^[0-9a-f]{64}\Z", required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if ("upload" in attrs) == ("sha256" in attrs):
            raise serializers.ValidationError("Name either an upload or a sha256.")
        return attrs


class NewVersion(StrictSerializer):
    """files: what the version is made of (a single zip or tar is unpacked); runtime: how it is to be run;
    alias: set when the version is ready; team: of a model that is made by this call; number: the version's, when it
    shall not be the next one.
    """

    files = serializers.ListField(child=NamedFile(), min_length=1, max_length=MAX_FILES)
    runtime = serializers.DictField(required=False, default=dict)
    alias = serializers.CharField(max_length=64, required=False, default="", allow_blank=True)
    team = slug_field(required=False, default="")
    number = serializers.IntegerField(required=False, min_value=1, max_value=2**31 - 2)


class NewAlias(Reason):
    version = serializers.IntegerField(min_value=1)


class BlobQuestion(StrictSerializer):
    sha256 = serializers.ListField(child=serializers.RegexField(r"^[0-9a-f]{64}\Z"), max_length=MAX_FILES)


class VersionQuery(StrictSerializer):
    status = serializers.ChoiceField(VersionStatus.choices, required=False)


class ModelQuery(StrictSerializer):
    team = slug_field(required=False)
    task = serializers.CharField(max_length=64, required=False)
    search = serializers.CharField(max_length=64, required=False)


class ModelShown(serializers.ModelSerializer[Model]):
    """latest_version: the newest ready number; aliases: name -> number."""

    team = serializers.CharField(source="team.name")
    latest_version = serializers.IntegerField(default=None)
    versions = serializers.IntegerField(source="version_count", default=0)
    aliases = serializers.SerializerMethodField()

    class Meta:
        model = Model
        fields = ("name", "team", "task", "description", "latest_version", "versions", "aliases", "created_at")

    def get_aliases(self, model: Model) -> dict[str, int]:
        return {alias.name: alias.version.number for alias in model.aliases.all()}


class VersionShown(serializers.ModelSerializer[Version]):
    """One line of a list."""

    model = serializers.CharField(source="model.name")
    aliases = serializers.SerializerMethodField()

    class Meta:
        model = Version
        fields = (
            "model", "number", "status", "digest", "format", "tier", "size_bytes", "reason", "remedy", "creator",
            "approved_by", "aliases", "created_at",
        )  # fmt: skip

    def get_aliases(self, version: Version) -> list[str]:
        return sorted(alias.name for alias in version.aliases.all())


class VersionDetail(VersionShown):
    """Everything about a version. `report` shows a running validation's checklist as it grows; `conversion`, of a
    rejected torch pickle only, what its conversion to safetensors has come to; `steps` are a pipeline's, each with the
    version that runs there.
    """

    files = serializers.SerializerMethodField()
    report = serializers.SerializerMethodField()
    conversion = serializers.SerializerMethodField()
    steps = serializers.SerializerMethodField()

    class Meta(VersionShown.Meta):
        fields = (  # type: ignore[assignment]  # longer, on purpose
            *VersionShown.Meta.fields,
            "signature",
            "settings",
            "files",
            "served_files",
            "report",
            "conversion",
            "steps",
        )

    def get_files(self, version: Version) -> list[dict[str, Any]]:
        files: list[dict[str, Any]] = version.manifest["files"]
        return files

    def get_report(self, version: Version) -> dict[str, Any]:
        return report_of(version)

    def get_conversion(self, version: Version) -> dict[str, Any] | None:
        return conversion_of(version)

    def get_steps(self, version: Version) -> list[dict[str, Any]]:
        rows = version.steps.select_related("version__model").order_by("position")
        return [{"name": row.name, "model": row.version.model.name, "version": row.version.number} for row in rows]


def report_of(version: Version) -> dict[str, Any]:
    """The kept report; while validation runs, what its host has told so far."""
    if version.report is not None:
        kept: dict[str, Any] = version.report
        return kept
    run = version.validation_runs.filter(purpose=ValidationRun.Purpose.VALIDATE).order_by("-created_at").first()
    if run is None:
        return {"checks": [], "measurements": {}, "host": "", "attempts": 0}
    return {"checks": run.checks, "measurements": {}, "host": run.host, "attempts": run.attempts}


class AliasShown(serializers.Serializer[Any]):
    name = serializers.CharField()
    version = serializers.IntegerField(source="version.number")


class AliasChangeShown(serializers.ModelSerializer[AliasChange]):
    from_version = serializers.IntegerField(source="from_version.number", default=None)
    to_version = serializers.IntegerField(source="to_version.number", default=None)

    class Meta:
        model = AliasChange
        fields = ("name", "from_version", "to_version", "actor", "reason", "at")
