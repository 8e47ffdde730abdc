"""The addresses of OpenAI's API."""

from __future__ import annotations

from dataclasses import dataclass

from inference.gateway.app import GET, POST, Doors
from inference.gateway.openai.completions import Completions
from inference.gateway.openai.embeddings import Embeddings
from inference.gateway.openai.files import Files
from inference.gateway.openai.models import Models
from inference.gateway.openai.responses import Responses

FILES = GET | POST | frozenset({"DELETE"})
KEPT = GET | frozenset({"DELETE"})


@dataclass(frozen=True, slots=True)
class OpenAI:
    """Those who answer."""

    completions: Completions
    embeddings: Embeddings
    models: Models
    files: Files
    responses: Responses


def open_all(doors: Doors, rooms: OpenAI) -> None:
    doors.path("/v1/models", GET, rooms.models.all)
    doors.pattern("openai model", r"/v1/models/(.{1,512})", GET, rooms.models.one)
    doors.path("/v1/chat/completions", POST, rooms.completions.chat)
    doors.path("/v1/completions", POST, rooms.completions.complete)
    doors.path("/v1/embeddings", POST, rooms.embeddings.embed)
    for prefix in ("", "/v1"):
        doors.path(f"{prefix}/tokenize", POST, rooms.completions.tokenize)
        doors.path(f"{prefix}/detokenize", POST, rooms.completions.detokenize)
        doors.path(f"{prefix}/score", POST, rooms.embeddings.score)
        doors.path(f"{prefix}/rerank", POST, rooms.embeddings.rerank)
    doors.path("/v2/rerank", POST, rooms.embeddings.rerank)  # as Cohere's client has it
    doors.pattern("openai files", r"/v1/(files|batches)(/[A-Za-z0-9_-]{1,80}){0,2}", FILES, rooms.files.pass_on)
    doors.path("/v1/responses", POST, rooms.responses.create)
    doors.pattern("openai response", r"/v1/responses/(resp_[A-Za-z0-9._:-]{1,160})", KEPT, rooms.responses.kept)
