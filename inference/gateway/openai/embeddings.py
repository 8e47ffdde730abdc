"""`/v1/embeddings`, `/v1/score` and `/v1/rerank`: an encoder's vectors in OpenAI's form, and how near they are.

Texts go to the replicas in as many requests as the version's batch size needs. How many tokens they were the replica
says, if asked by the parameter `count_tokens`.
"""

from __future__ import annotations

import base64
import math
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import mul
from typing import Any, cast

import msgspec

from inference.errors import NotReady
from inference.gateway.calls import Call
from inference.gateway.dataplane import DataPlane
from inference.gateway.openai import checks, foreign
from inference.gateway.openai.asking import Target, Who, find, together, who_of
from inference.gateway.openai.problems import BadField
from inference.gateway.table import Variant
from inference.gateway.web import JSON_TYPE, Headers, Request, Response
from inference.protocol import token_ids
from inference.protocol.generation import PLATFORM
from inference.protocol.messages import TensorHeader
from inference.protocol.oip import Signature
from inference.protocol.openai import EmbeddingBody, RerankBody, ScoreBody

COUNT_TOKENS, TOKENS = "count_tokens", "tokens"
TAKES_IDS = "hf_encoder"  # the platform whose texts may be token ids
MAX_TEXTS = 2048
Text = str | list[int]
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Form:
    """How a version takes texts and gives vectors. rows: texts of one request; shape: of one row of the input, beyond
    the batch dimension.
    """

    name: str
    output: str
    rows: int
    shape: list[int]


def form_of(signature: Signature) -> Form | None:
    """None for a version that is no encoder of texts: one BYTES input of one text a row, one FP32 vector a row."""
    if len(signature.inputs) != 1 or signature.platform == PLATFORM or signature.labels:
        return None
    given = signature.inputs[0]
    vectors = [spec for spec in signature.outputs if spec.datatype == "FP32" and len(spec.shape) == 2]
    if given.datatype != "BYTES" or given.shape not in ([-1], [-1, 1]) or not vectors:
        return None
    named = next((spec for spec in vectors if spec.name == "embedding"), vectors[0])
    if named.name != "embedding" and len(signature.outputs) != 1:
        return None
    return Form(given.name, named.name, max(1, signature.max_batch_size), given.shape[1:])


@dataclass(slots=True)
class Vectors:
    """rows: each text's vector, as little-endian FP32; tokens: of all texts."""

    rows: list[memoryview]
    tokens: int
    headers: Headers


class Embeddings:
    """The handlers."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def embed(self, request: Request) -> Response:
        who, body = who_of(request), checks.decode(request.body, EmbeddingBody)
        foreign.refuse(body, foreign.EMBEDDINGS)
        target = find(self._plane, body.model, who)
        texts = _texts(body.input)
        if body.encoding_format not in {None, "float", "base64"}:
            raise BadField(
                f"Invalid value: '{body.encoding_format}'. Supported values are: 'float' and 'base64'.",
                "encoding_format",
            )
        found = await self._vectors(target, who, texts, "input")
        rows = _cut(found.rows, body.dimensions)
        is_base64 = body.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _shown(row, is_base64=is_base64)}
            for index, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
        return _json({"object": "list", "data": data, "model": body.model, "usage": usage}, found.headers)

    async def score(self, request: Request) -> Response:
        who, body = who_of(request), checks.decode(request.body, ScoreBody)
        foreign.refuse(body, foreign.EMBEDDINGS)
        target = find(self._plane, body.model, who)
        left = _list(body.text_1 if body.text_1 is not None else body.queries, "text_1")
        right = _list(body.text_2 if body.text_2 is not None else body.documents, "text_2")
        if len(left) not in {1, len(right)}:
            raise BadField(f"'text_1' holds {len(left)} texts and 'text_2' {len(right)}: one, or as many.", "text_1")
        found = await self._vectors(target, who, [*left, *right], "text_2")
        vectors = [_floats(row) for row in found.rows]
        first, second = vectors[: len(left)], vectors[len(left) :]
        pairs = zip(first * len(second) if len(first) == 1 else first, second, strict=True)
        data = [{"index": n, "object": "score", "score": cosine(*pair)} for n, pair in enumerate(pairs)]
        usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
        told = {"id": f"score-{request.id}", "object": "list", "model": body.model, "data": data, "usage": usage}
        return _json(told, found.headers)

    async def rerank(self, request: Request) -> Response:
        who, body = who_of(request), checks.decode(request.body, RerankBody)
        foreign.refuse(body, foreign.EMBEDDINGS)
        target = find(self._plane, body.model, who)
        query = checks.needed(body.query, "query")
        texts = _list([_document(one) for one in checks.needed(body.documents, "documents")], "documents")
        checks.number(body.top_n, "top_n", 0)
        found = await self._vectors(target, who, [query, *texts], "documents")
        first, *others = [_floats(row) for row in found.rows]
        scores = sorted(((cosine(first, one), -index) for index, one in enumerate(others)), reverse=True)
        results: list[dict[str, Any]] = [
            {"index": -place, "relevance_score": score}
            | ({} if body.return_documents is False else {"document": {"text": texts[-place]}})
            for score, place in scores[: body.top_n or len(scores)]
        ]
        told = {"id": f"rerank-{request.id}", "model": body.model, "usage": {"total_tokens": found.tokens},
                "results": results}  # fmt: skip
        return _json(told, found.headers)

    async def _vectors(self, target: Target, who: Who, texts: Sequence[Text], param: str) -> Vectors:
        rows = _rows_of(target)
        parts = [texts[at : at + rows] for at in range(0, len(texts), rows)]
        found = await together([partial(self._part, target, who, part, param) for part in parts])
        vectors = [row for one in found for row in one.rows]
        return Vectors(vectors, sum(one.tokens for one in found), found[0].headers)

    async def _part(self, target: Target, who: Who, texts: Sequence[Text], param: str) -> Vectors:
        done = await self._plane.infer(target.asked(who), partial(_call, target, who, texts, param))
        if len(done.answer.tensors) != 1:
            raise NotReady("the replica sent an unreadable answer")
        tensor = done.answer.tensors[0]
        size = tensor.size_bytes // len(texts)
        if tensor.datatype != "FP32" or tensor.shape[0] != len(texts) or size % 4 or not size:
            raise NotReady("the replica sent an unreadable answer")
        rows = [done.body[at : at + size] for at in range(0, tensor.size_bytes, size)]
        tokens = done.answer.parameters.get(TOKENS, 0)
        return Vectors(rows, tokens if isinstance(tokens, int) else 0, done.headers)


def _rows_of(target: Target) -> int:
    """Texts that every version of the endpoint takes at once."""
    forms = [form_of(variant.route.signature) for variant in target.endpoint.variants.values()]
    return min((form.rows for form in forms if form is not None), default=1)


def _call(target: Target, who: Who, texts: Sequence[Text], param: str, variant: Variant) -> Call:
    form = form_of(variant.route.signature)
    name = target.endpoint.route.name
    if form is None:
        raise BadField(
            f"The model '{name}' gives no embeddings: that takes one input of texts and one vector a row. Other models "
            f"answer at /v2/models/{name}/infer, language models at /v1/chat/completions.",
            "model",
            "model_not_supported",
        )
    if variant.route.signature.platform != TAKES_IDS and not all(isinstance(text, str) for text in texts):
        raise BadField(
            f"The model '{name}' reads texts, no token ids: send 'input' as text.", param, "unsupported_value"
        )
    data = _packed(texts, param)
    header = TensorHeader(form.name, "BYTES", [len(texts), *form.shape], len(data))
    most = variant.route.settings.priority_levels
    return Call(
        "", [header], [data], [form.output], None, {COUNT_TOKENS: True},
        priority=min(who.priority, most), traceparent=who.trace[0], tracestate=who.trace[1], rows=len(texts),
    )  # fmt: skip


def _packed(texts: Sequence[Text], param: str) -> bytes:
    """As elements of a BYTES tensor. Raises BadField."""
    try:
        elements = [text.encode() if isinstance(text, str) else token_ids.packed(text) for text in texts]
    except UnicodeError as error:
        raise BadField(f"'{param}' is not valid UTF-8.", param) from error
    except struct.error as error:
        raise BadField(f"A token id in '{param}' is not 0 to {token_ids.MOST}.", param) from error
    return b"".join(len(one).to_bytes(4, "little") + one for one in elements)


def _texts(given: str | list[str | int | list[int]] | None) -> Sequence[Text]:
    """A text, texts, the token ids of one text, or of several."""
    found = checks.needed(given, "input")
    if isinstance(found, str) or all(isinstance(one, str) for one in found):
        return _list(cast("str | list[str]", found), "input")
    if all(isinstance(one, int) for one in found):
        return [cast("list[int]", found)]
    if not all(isinstance(one, list) for one in found):
        raise BadField("'input' is a text, texts, or token ids of one text or of several, not a mixture.", "input",
                       "invalid_type")  # fmt: skip
    if len(found) > MAX_TEXTS:
        raise BadField(f"Invalid 'input': at most {MAX_TEXTS} texts.", "input", "array_above_max_length")
    if not all(found):
        raise BadField("Invalid 'input': a text has at least one token.", "input", "empty_array")
    return cast("list[list[int]]", found)


def _list(given: str | list[str] | None, param: str) -> list[str]:
    found = [given] if isinstance(given, str) else checks.needed(given, param)
    if not found:
        raise BadField(f"Invalid '{param}': empty array.", param, "empty_array")
    if len(found) > MAX_TEXTS:
        raise BadField(f"Invalid '{param}': at most {MAX_TEXTS} texts.", param, "array_above_max_length")
    if not all(found):
        raise BadField(f"Invalid '{param}': an empty text has no meaning to compare.", param)
    return found


def _document(given: str | dict[str, Any]) -> str:
    text = given if isinstance(given, str) else given.get("text")
    if not isinstance(text, str):
        raise BadField("A document is a text, or an object with 'text'.", "documents", "invalid_type")
    return text


def _cut(rows: list[memoryview], dimensions: int | None) -> list[memoryview]:
    """The vectors' first `dimensions` numbers, of length 1 again. Raises BadField."""
    size = len(rows[0]) // 4
    checks.number(dimensions, "dimensions", 1, size)
    if dimensions is None or dimensions == size:
        return rows
    return [_normalised(_floats(row)[:dimensions]) for row in rows]


def _normalised(values: list[float]) -> memoryview:
    length = math.sqrt(sum(map(mul, values, values))) or 1.0
    return memoryview(array("f", [value / length for value in values])).cast("B")


def _shown(row: memoryview, *, is_base64: bool) -> str | list[float]:
    return base64.b64encode(row).decode() if is_base64 else _floats(row)


def _floats(row: memoryview) -> list[float]:
    return cast("list[float]", row.cast("f").tolist())


def cosine(left: list[float], right: list[float]) -> float:
    """In [-1, 1]; 0 where a vector has no length."""
    lengths = math.sqrt(sum(map(mul, left, left)) * sum(map(mul, right, right)))
    found = sum(map(mul, left, right)) / lengths if lengths else 0.0
    return max(-1.0, min(1.0, found)) if math.isfinite(found) else 0.0


def _json(told: dict[str, Any], headers: Headers) -> Response:
    return Response(200, [JSON_TYPE, *headers], _encode(told))
