"""The addresses of OpenAI's API."""

from __future__ import annotations

from dataclasses import dataclass

from inference.gateway.app import GET, POST, Doors
from inference.gateway.openai.completions import Completions
from inference.gateway.openai.embeddings import Embeddings
from inference.gateway.openai.models import Models


@dataclass(frozen=True, slots=True)
class OpenAI:
    """Those who answer."""

    completions: Completions
    embeddings: Embeddings
    models: Models


def open_all(doors: Doors, rooms: OpenAI) -> None:
    doors.path("/v1/models", GET, rooms.models.all)
    doors.pattern("openai model", r"/v1/models/(.{1,512})", GET, rooms.models.one)
    doors.path("/v1/chat/completions", POST, rooms.completions.chat)
    doors.path("/v1/completions", POST, rooms.completions.complete)
    doors.path("/v1/embeddings", POST, rooms.embeddings.embed)
    for prefix in ("", "/v1"):
        doors.path(f"{prefix}/tokenize", POST, rooms.completions.tokenize)
        doors.path(f"{prefix}/detokenize", POST, rooms.completions.detokenize)
    doors.path("/v1/score", POST, rooms.embeddings.score)
    doors.path("/v1/rerank", POST, rooms.embeddings.rerank)
