"""Control API of models, versions, aliases and content: reads rows, calls actions, decides nothing."""

from __future__ import annotations

from typing import Any

from django.db.models import Count, IntegerField, Max, Q, QuerySet
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api import KeysetView, actor
from accounts.permissions import Actor, Verb, require, visible
from accounts.serializers import Reason, read, read_query
from accounts.teams import find_team, team_for
from inference.errors import NotFound
from registry import actions
from registry import serializers as shapes
from registry.content import usable
from registry.conversions import conversion_of
from registry.downloads import attachment
from registry.models import Model, Version, VersionStatus


def models_shown(who: Actor) -> QuerySet[Model]:
    latest = Max("versions__number", filter=Q(versions__status=VersionStatus.READY), output_field=IntegerField())
    rows = Model.objects.select_related("team").prefetch_related("aliases__version")
    return visible(who, rows).annotate(latest_version=latest, version_count=Count("versions"))


def find_model(who: Actor, name: str) -> Model:
    """Raises NotFound for what is not there and for what others own alike."""
    model = models_shown(who).filter(name=name).first()
    if model is None:
        raise NotFound(f"there is no model '{name}'")
    return model


def find_version(who: Actor, name: str, number: str | int) -> Version:
    rows = visible(who, Version.objects.select_related("model__team", "created_by"), "model__team")
    found = rows.prefetch_related("aliases").filter(model__name=name, number=int(number)).first()
    if found is None:
        raise NotFound(f"there is no version {name}:{number}")
    return found


class Models(KeysetView):
    @extend_schema(parameters=[shapes.ModelQuery], responses=shapes.ModelShown(many=True))
    def get(self, request: Request) -> Response:
        wanted, rows = read_query(shapes.ModelQuery, request), models_shown(actor(request))
        paths = {"team": "team__name", "search": "name__icontains"}
        rows = rows.filter(**{paths.get(name, name): value for name, value in wanted.items()})
        return self.page(request, rows, shapes.ModelShown)

    @extend_schema(request=shapes.NewModel, responses={201: shapes.ModelShown})
    def post(self, request: Request) -> Response:
        wanted, who = read(shapes.NewModel, request), actor(request)
        team = team_for(who, Verb.UPLOAD, wanted.pop("team"))
        model = actions.create_model(actor=who, team=team, **wanted)
        return Response(shapes.ModelShown(model).data, 201)


class ModelByName(APIView):
    @extend_schema(responses=shapes.ModelShown)
    def get(self, request: Request, model: str) -> Response:
        return Response(shapes.ModelShown(find_model(actor(request), model)).data)

    @extend_schema(request=shapes.ModelChange, responses=shapes.ModelShown)
    def patch(self, request: Request, model: str) -> Response:
        who, wanted = actor(request), read(shapes.ModelChange, request)
        actions.describe_model(actor=who, model=find_model(who, model), **wanted)
        return Response(shapes.ModelShown(find_model(who, model)).data)


class Versions(KeysetView):
    @extend_schema(parameters=[shapes.VersionQuery], responses=shapes.VersionShown(many=True))
    def get(self, request: Request, model: str) -> Response:
        wanted = read_query(shapes.VersionQuery, request)
        rows = Version.objects.filter(model=find_model(actor(request), model), **wanted).defer("manifest", "report")
        return self.page(request, rows.select_related("model").prefetch_related("aliases"), shapes.VersionShown)

    @extend_schema(request=shapes.NewVersion, responses={201: shapes.VersionDetail})
    def post(self, request: Request, model: str) -> Response:
        """Make the next version out of finished uploads; it is validated at once."""
        wanted, who = read(shapes.NewVersion, request), actor(request)
        version = actions.create_version(
            actor=who,
            model_name=model,
            files=wanted["files"],
            settings=wanted["runtime"],
            alias=wanted["alias"] or None,
            team=find_team(who, wanted["team"]) if wanted["team"] else None,
            number=wanted.get("number"),
        )
        place = f"/api/models/{model}/versions/{version.number}/"
        return Response(shapes.VersionDetail(version).data, 201, headers={"Location": place})


class VersionByNumber(APIView):
    @extend_schema(responses=shapes.VersionDetail)
    def get(self, request: Request, model: str, number: str) -> Response:
        return Response(shapes.VersionDetail(find_version(actor(request), model, number)).data)


class Report(APIView):
    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request, model: str, number: str) -> Response:
        """The validation's checklist and measurements."""
        version = find_version(actor(request), model, number)
        told = {"status": version.status, "reason": version.reason, "remedy": version.remedy}
        return Response({**told, **shapes.report_of(version), "conversion": conversion_of(version)})


class _Move(APIView):
    act: Any

    @extend_schema(request=Reason, responses=shapes.VersionDetail)
    def post(self, request: Request, model: str, number: str) -> Response:
        who, reason = actor(request), read(Reason, request)["reason"]
        version = find_version(who, model, number)
        done = type(self).act(actor=who, version=version, reason=reason)
        return Response(shapes.VersionDetail(done).data)


class Approve(_Move):
    """As the second person, let a version that holds code run."""

    act = staticmethod(actions.approve_version)


class Reject(_Move):
    """Refuse a version that holds code; say why."""

    act = staticmethod(actions.reject_version)


class Archive(_Move):
    """Put a version away for ever."""

    act = staticmethod(actions.archive_version)


class Convert(APIView):
    @extend_schema(request=None, responses={202: shapes.VersionDetail})
    def post(self, request: Request, model: str, number: str) -> Response:
        """Have the tensors of a rejected torch pickle written as safetensors, in the sandbox. Watch `conversion`."""
        who = actor(request)
        version = find_version(who, model, number)
        actions.convert_version(actor=who, version=version)
        return Response(shapes.VersionDetail(version).data, 202)


class ConvertedFile(APIView):
    @extend_schema(responses={(200, "application/octet-stream"): OpenApiTypes.BINARY})
    def get(self, request: Request, model: str, number: str) -> StreamingHttpResponse:
        """model.safetensors, as conversion made it."""
        who = actor(request)
        return attachment(actions.converted_file(actor=who, version=find_version(who, model, number)))


class Aliases(APIView):
    @extend_schema(responses=shapes.AliasShown(many=True))
    def get(self, request: Request, model: str) -> Response:
        rows = find_model(actor(request), model).aliases.select_related("version").order_by("name")
        return Response(shapes.AliasShown(rows, many=True).data)


class AliasByName(APIView):
    """A movable name for a ready version."""

    @extend_schema(responses=shapes.AliasShown)
    def get(self, request: Request, model: str, alias: str) -> Response:
        row = find_model(actor(request), model).aliases.select_related("version").filter(name=alias).first()
        if row is None:
            raise NotFound(f"{model} has no alias '{alias}'")
        return Response(shapes.AliasShown(row).data)

    @extend_schema(request=shapes.NewAlias, responses=shapes.AliasShown)
    def put(self, request: Request, model: str, alias: str) -> Response:
        wanted, who = read(shapes.NewAlias, request), actor(request)
        row, version = find_model(who, model), find_version(who, model, wanted["version"])
        done = actions.set_alias(actor=who, model=row, name=alias, version=version, reason=wanted["reason"])
        return Response(shapes.AliasShown(done).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, model: str, alias: str) -> Response:
        who = actor(request)
        actions.delete_alias(actor=who, model=find_model(who, model), name=alias)
        return Response(status=204)


class AliasHistory(KeysetView):
    @extend_schema(responses=shapes.AliasChangeShown(many=True))
    def get(self, request: Request, model: str, alias: str) -> Response:
        """Who pointed it where, when and why; newest first."""
        rows = find_model(actor(request), model).alias_changes.filter(name=alias)
        return self.page(request, rows.select_related("from_version", "to_version"), shapes.AliasChangeShown)


class CheckBlobs(APIView):
    @extend_schema(request=shapes.BlobQuestion, responses=OpenApiTypes.OBJECT)
    def post(self, request: Request) -> Response:
        """Which of this content need not be sent again? Only what one's own teams have is told."""
        who = actor(request)
        require(who, Verb.UPLOAD)
        asked = read(shapes.BlobQuestion, request)["sha256"]
        return Response({"present": sorted(usable(who, asked))})
