"""Triton's repository calls in Triton's shapes, and the two calls of the process that reads a repository's folder."""

from __future__ import annotations

import json
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api import actor
from accounts.parsers import StrictJSONParser
from accounts.permissions import Verb
from accounts.problems import handle
from accounts.serializers import StrictSerializer, read, slug_field
from accounts.teams import find_team, team_for
from endpoints import repository
from endpoints.models import RepositoryModel
from inference.errors import InvalidInput

MAX_CONFIG_CHARS = 64 << 10
INSTEAD = "change the files in the model repository, or upload a version (`serinus upload`)"
# Triton's clients know a failed load by 400 and tell its words; the other statuses are the control API's own.
STATUS = {409: 400, 422: 400, 501: 400}


def in_tritons_shape(error: Exception, context: dict[str, Any]) -> Response | None:
    """The control API's answer to an error, its body cut down to {"error": words}."""
    answer = handle(error, context)
    if answer is None:
        return None
    told = answer.data["error"]
    words = told["message"] + _fields(told.get("fields"))
    headers = {name: value for name, value in answer.items() if name.lower() != "content-type"}
    return Response({"error": words}, STATUS.get(answer.status_code, answer.status_code), headers=headers)


def _fields(fields: Any) -> str:
    """The framework's details of each field, as words."""
    if not fields:
        return ""
    if not isinstance(fields, dict):
        return f" {json.dumps(fields, default=str)}"
    return "".join(f" {json.dumps(name)}: {json.dumps(details, default=str)}" for name, details in fields.items())


class AnyJson(StrictJSONParser):
    """JSON by whatever type it is sent, for Triton's clients send none."""

    media_type = "*/*"


class TritonView(APIView):
    parser_classes = (AnyJson,)

    def get_exception_handler(self) -> Any:
        return in_tritons_shape


class IndexSerializer(StrictSerializer):
    ready = serializers.BooleanField(required=False, default=False)


class Index(TritonView):
    @extend_schema(request=IndexSerializer, responses=OpenApiTypes.OBJECT)
    def post(self, request: Request) -> Response:
        """Every version that this key may see, with its state; "ready": only those that serve."""
        # A body is no must: clients ask with none.
        asked = read(IndexSerializer, request) if request.data else {"ready": False}
        return Response(repository.index(actor(request), ready_only=asked["ready"]))


class Load(TritonView):
    @extend_schema(request=OpenApiTypes.OBJECT, responses=OpenApiTypes.NONE)
    def post(self, request: Request, name: str) -> Response:
        """Loads a model: answers when it serves, or why it does not. "config": in place of the folder's config.pbtxt."""
        config = _parameter(request.data, "config", "")
        if not isinstance(config, str) or len(config) > MAX_CONFIG_CHARS:
            raise InvalidInput(f"parameter 'config' must be a text of JSON, at most {MAX_CONFIG_CHARS} characters")
        repository.load(actor(request), name, config=config)
        return Response(status=200)


class Unload(TritonView):
    @extend_schema(request=OpenApiTypes.OBJECT, responses=OpenApiTypes.NONE)
    def post(self, request: Request, name: str) -> Response:
        """Stops a model's replicas; what is under way is answered."""
        if _parameter(request.data, "unload_dependents", False) is not False:
            raise InvalidInput("parameter 'unload_dependents' may only be false: unload each model by its name")
        repository.unload(actor(request), name)
        return Response(status=200)


def _parameter(body: Any, known: str, default: Any) -> Any:
    """The only parameter of a call. Raises InvalidInput naming what would be passed over."""
    if not isinstance(body, dict) or not isinstance(body.get("parameters", {}), dict):
        raise InvalidInput("the body must be a JSON object, and 'parameters' in it one too")
    unknown = sorted(set(body) - {"parameters"})
    if unknown:
        raise InvalidInput(f"'{unknown[0][:80]}' is not known here")
    for name in body.get("parameters", {}):
        if name != known:
            raise InvalidInput(f"parameter '{name[:80]}' is not supported: {INSTEAD}")
    return body.get("parameters", {}).get(known, default)


class FolderSerializer(StrictSerializer):
    """models: the names of all of the folder's models; team: whose they are."""

    models = serializers.ListField(child=slug_field(), max_length=repository.MAX_LISTED)
    team = slug_field(required=False, default="")


class AnswerSerializer(StrictSerializer):
    """load: the number of the load that has ended; reason: why it failed, empty when it did not."""

    load = serializers.IntegerField(min_value=1)
    reason = serializers.CharField(max_length=1000, required=False, default="", allow_blank=True)


class ListedSerializer(serializers.ModelSerializer[RepositoryModel]):
    class Meta:
        model = RepositoryModel
        fields = ("name", "asked", "done", "reason", "config")


class Folder(APIView):
    @extend_schema(request=FolderSerializer, responses=ListedSerializer(many=True))
    def put(self, request: Request) -> Response:
        """What lies in the folder; answered by the loads that are asked for. For the platform's own process."""
        who, asked = actor(request), read(FolderSerializer, request)
        team = find_team(who, asked["team"]) if asked["team"] else team_for(who, Verb.OPERATE)
        rows = repository.list_folder(who, team, asked["models"])
        return Response(ListedSerializer(rows, many=True).data)


class Answer(APIView):
    @extend_schema(request=AnswerSerializer, responses=ListedSerializer)
    def post(self, request: Request, name: str) -> Response:
        """A load has ended."""
        asked = read(AnswerSerializer, request)
        row = repository.answer_wish(actor(request), name, asked["load"], asked["reason"])
        return Response(ListedSerializer(row).data)
