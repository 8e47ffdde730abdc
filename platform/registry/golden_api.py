"""Control API of golden inputs: reads rows, calls actions, decides nothing."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api import actor
from accounts.serializers import StrictSerializer, read, slug_field
from inference.errors import InvalidInput, NotFound
from inference.protocol.compare import KINDS
from inference.protocol.routes import Comparison
from registry import actions
from registry.api import find_model
from registry.golden import Golden, golden_prompt
from registry.models import GoldenInput


class NewGolden(StrictSerializer):
    """Either inputs and outputs (tensors of the Open Inference Protocol), or, of a language model, a prompt and the text
    that it answers greedily. version: which one answered so; comparison, tolerance (0 to 1), k: when another answer is
    still right.
    """

    name = slug_field(required=False, default="", allow_blank=True)
    inputs = serializers.JSONField(required=False)
    outputs = serializers.JSONField(required=False)
    parameters = serializers.DictField(required=False, default=dict)
    prompt = serializers.CharField(required=False, max_length=100_000, trim_whitespace=False)
    expected = serializers.CharField(required=False, max_length=100_000, trim_whitespace=False, allow_blank=True)
    max_tokens = serializers.IntegerField(required=False, min_value=1, max_value=4096)
    version = serializers.IntegerField(required=False, default=0, min_value=0, max_value=2**31 - 1)
    comparison = serializers.ChoiceField(KINDS, required=False, default="auto")
    tolerance = serializers.FloatField(required=False, default=0.01, min_value=0, max_value=1)
    k = serializers.IntegerField(required=False, default=5, min_value=1, max_value=1000)


class GoldenShown(serializers.ModelSerializer[GoldenInput]):
    version = serializers.IntegerField(source="source_version", allow_null=True)

    class Meta:
        model = GoldenInput
        fields = (
            "id",
            "name",
            "inputs",
            "parameters",
            "outputs",
            "comparison",
            "tolerance",
            "k",
            "version",
            "created_by",
            "created_at",
        )


def golden_of(wanted: dict[str, Any]) -> Golden:
    """Raises InvalidInput when it is neither tensors nor a prompt, or both."""
    common: dict[str, Any] = {
        "name": wanted["name"],
        "comparison": Comparison(wanted["comparison"], wanted["tolerance"], wanted["k"]),
        "source_version": wanted["version"],
    }
    if ("inputs" in wanted) == ("prompt" in wanted):
        raise InvalidInput("give either 'inputs' and 'outputs', or 'prompt' and 'expected'")
    if "prompt" in wanted:
        if "expected" not in wanted:
            raise InvalidInput("'expected' is missing: the text that the prompt is answered with")
        tokens = {"max_tokens": wanted["max_tokens"]} if "max_tokens" in wanted else {}
        return golden_prompt(wanted["prompt"], wanted["expected"], **tokens, **common)
    if "outputs" not in wanted:
        raise InvalidInput("'outputs' is missing: the right answer to 'inputs'")
    return Golden(wanted["inputs"], wanted["outputs"], wanted["parameters"], **common)


class GoldenInputs(APIView):
    @extend_schema(responses=GoldenShown(many=True))
    def get(self, request: Request, model: str) -> Response:
        """The model's golden inputs, at most 50, by name."""
        rows = find_model(actor(request), model).golden_inputs.order_by("name")
        return Response(GoldenShown(rows, many=True).data)

    @extend_schema(request=NewGolden, responses={201: GoldenShown})
    def post(self, request: Request, model: str) -> Response:
        """Save a request with its right answer; rollouts ask it of every candidate before any traffic."""
        who = actor(request)
        found = find_model(who, model)
        golden = golden_of(read(NewGolden, request))
        row = actions.save_golden(actor=who, model=found, golden=golden)
        return Response(GoldenShown(row).data, 201, headers={"Location": f"/api/models/{model}/golden/{row.pk}/"})


class GoldenById(APIView):
    @extend_schema(responses=GoldenShown)
    def get(self, request: Request, model: str, golden: str) -> Response:
        row = find_model(actor(request), model).golden_inputs.filter(pk=int(golden)).first()
        if row is None:
            raise NotFound(f"{model} has no golden input {golden}")
        return Response(GoldenShown(row).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, model: str, golden: str) -> Response:
        who = actor(request)
        actions.remove_golden(actor=who, model=find_model(who, model), identity=int(golden))
        return Response(status=204)
