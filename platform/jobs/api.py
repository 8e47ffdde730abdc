"""OpenAI's Files and Batches. Files come in through jobs.uploading; gateways pass all of it on to here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.api import actor
from endpoints.repository_api import AnyJson
from inference.errors import InvalidInput, NotFound
from jobs import actions, files, rights, shapes, store
from jobs.models import Batch
from jobs.problems import in_openais_shape

PIECE_BYTES = 256 << 10
NEW_BATCH = {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}


class OpenAIView(APIView):
    parser_classes = (AnyJson,)

    def get_exception_handler(self) -> Any:
        return in_openais_shape

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """There is one shape of answers, whatever is asked for: the client wants contents as application/binary."""
        renderer = self.get_renderers()[0]
        return renderer, renderer.media_type


class Files(OpenAIView):
    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request) -> Response:
        """Files that this caller may see, by `after`, `limit`, `order` and `purpose`."""
        query = request.query_params.dict()
        rows = rights.living_files(actor(request))
        if purpose := query.get("purpose"):
            rows = rows.filter(purpose=purpose[:40].replace("\0", ""))
        return Response(shapes.listed(rows, query, shapes.file, limit=10_000, most=10_000))


class FileDetail(OpenAIView):
    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request, file_id: str) -> Response:
        return Response(shapes.file(rights.find_file(actor(request), file_id)))

    @extend_schema(responses=OpenApiTypes.OBJECT)
    def delete(self, request: Request, file_id: str) -> Response:
        """Row and bytes; not while a batch reads it."""
        who = actor(request)
        row = rights.find_file(who, file_id)
        files.delete_file(actor=who, file=row)
        return Response({"id": row.public_id, "object": "file", "deleted": True})


class FileContent(OpenAIView):
    @extend_schema(responses=OpenApiTypes.BINARY)
    def get(self, request: Request, file_id: str) -> HttpResponseBase:
        """The bytes, as a stream."""
        row = rights.find_file(actor(request), file_id)
        path = store.path_of(row.public_id)
        if not path.is_file():
            raise NotFound(f"the content of {row.public_id} is gone")
        head = request.method == "HEAD"
        response = HttpResponse() if head else StreamingHttpResponse(_pieces(path))
        response["Content-Type"] = "application/octet-stream"
        response["Content-Length"] = str(row.size_bytes)
        response["Content-Disposition"] = f'attachment; filename="{_plain(row.filename)}"'
        return response


def _plain(name: str) -> str:
    """A file name that fits into a header."""
    return "".join(one if one.isascii() and (one.isalnum() or one in "._-") else "_" for one in name)


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece
    finally:
        file.close()


class Batches(OpenAIView):
    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request) -> Response:
        """Batches that this caller may see, the newest first, by `after` and `limit`."""
        rows = rights.seen(actor(request), Batch.objects.select_related("output_file", "error_file"))
        return Response(shapes.listed(rows, request.query_params.dict(), shapes.batch, limit=20, most=100))

    @extend_schema(request=OpenApiTypes.OBJECT, responses=OpenApiTypes.OBJECT)
    def post(self, request: Request) -> Response:
        """Starts a batch over an uploaded file."""
        who, asked = actor(request), _read(request.data)
        row = actions.create_batch(
            actor=who,
            file=rights.find_file(who, asked["input_file_id"]),
            endpoint=asked["endpoint"],
            completion_window=asked["completion_window"],
            metadata=asked.get("metadata"),
            output_life_s=_output_life(asked.get("output_expires_after")),
        )
        return Response(shapes.batch(row))


def _read(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object")
    if unknown := sorted(set(body) - NEW_BATCH):
        raise InvalidInput(f"'{unknown[0][:80]}' is not known here")
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not isinstance(body.get(name), str):
            raise InvalidInput(f"'{name}' is needed, as a text")
    return body


def _output_life(wish: Any) -> int:
    """Seconds of `{"anchor": "created_at", "seconds"}`, 0 for the usual life."""
    if wish is None:
        return 0
    if not isinstance(wish, dict) or wish.get("anchor") != "created_at" or type(wish.get("seconds")) is not int:
        raise InvalidInput("output_expires_after looks like {anchor: 'created_at', seconds: 3600}")
    return int(files.life_of(wish["seconds"]).total_seconds())


class BatchDetail(OpenAIView):
    @extend_schema(responses=OpenApiTypes.OBJECT)
    def get(self, request: Request, batch_id: str) -> Response:
        return Response(shapes.batch(rights.find_batch(actor(request), batch_id)))


class Cancel(OpenAIView):
    @extend_schema(request=None, responses=OpenApiTypes.OBJECT)
    def post(self, request: Request, batch_id: str) -> Response:
        """Gives up what is not done; what is done can be read from the output file."""
        who = actor(request)
        return Response(shapes.batch(actions.cancel_batch(actor=who, batch=rights.find_batch(who, batch_id))))
