"""The REST protocol as an OpenAPI 3.1 description: Open Inference Protocol v2 with Triton's extensions, as docs and
clients know it. A test holds it to the table of doors, so that an address without a description fails.
"""

from __future__ import annotations

from typing import Any

from inference.protocol.oip import DATATYPES

Json = dict[str, Any]
NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[a-z0-9-]{1,40}$"}}
NUMBER = {"name": "number", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1, "maximum": 99}}
REGION = {"name": "region", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[a-z]{1,20}$"}}
TIMEOUT = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "schema": {"type": "integer", "minimum": 1, "maximum": 10_000},
}
SCALAR: Json = {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "boolean"}]}
PARAMETERS: Json = {"type": "object", "additionalProperties": SCALAR, "maxProperties": 64}
TENSOR: Json = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**31}, "maxItems": 16},
        "datatype": {"enum": sorted(DATATYPES)},
        "data": {"type": "array", "items": SCALAR},
        "parameters": PARAMETERS,
    },
}
ROWS: Json = {"type": "array", "items": {"type": "number"}, "minItems": 16, "maxItems": 16}
GOOD: Json = {  # what the endpoint of the tests takes
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {"name": {"const": "x"}, "shape": {"const": [1, 16]}, "datatype": {"const": "FP32"}, "data": ROWS},
}
INFER: Json = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string", "maxLength": 256},
        "inputs": {"type": "array", "items": {"anyOf": [GOOD, TENSOR]}, "maxItems": 64},
        "outputs": {
            "type": "array",
            "maxItems": 64,
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "parameters": PARAMETERS},
            },
        },
        "parameters": PARAMETERS,
    },
}
SETTINGS: Json = {"type": "object", "additionalProperties": {"anyOf": [SCALAR, {"type": "null"}]}}
GENERATE: Json = {"type": "object", "properties": {"x": ROWS, "id": {"type": "string"}, "parameters": PARAMETERS}}
INDEX: Json = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
CHANGE: Json = {"type": "object", "properties": {"parameters": PARAMETERS}}
SHM: Json = {
    "type": "object",
    "required": ["key", "byte_size"],
    "properties": {"key": {"type": "string"}, "offset": {"type": "integer"}, "byte_size": {"type": "integer"}},
}
SCORE: Json = {
    "type": "object",
    "required": ["score"],
    "properties": {"score": {"type": "number", "minimum": 0, "maximum": 1}},
    "additionalProperties": False,
}
ERRORS = ("400", "401", "403", "404", "405", "409", "413", "415", "422", "429", "501", "503")


def _call(*parameters: Json, body: Json | None = None) -> Json:
    error = {"description": "a typed error", "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}  # fmt: skip
    found: Json = {
        "parameters": list(parameters),
        "responses": {"200": {"description": "OK"}} | dict.fromkeys(ERRORS, error),
    }
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return found


def description() -> Json:
    """Every address of the REST door but `/metrics`' text and the WebSocket."""
    get, post = (lambda *p: {"get": _call(*p)}), (lambda body, *p: {"post": _call(*p, body=body)})
    paths: Json = {
        "/v2": get(),
        "/v2/health/live": get(),
        "/v2/health/ready": get(),
        "/v2/models/stats": get(),
        "/metrics": get(),
        "/v2/logging": get() | post(SETTINGS),
        "/v2/trace/setting": get() | post(SETTINGS),
        "/v2/repository/index": post(INDEX),
        "/v2/feedback/{name}.1.p.65000000.1.AAAAAAAAAAAAAAAA": post(SCORE, NAME),
        "/v2/repository/models/{name}/load": post(CHANGE, NAME),
        "/v2/repository/models/{name}/unload": post(CHANGE, NAME),
    }
    for start, more in (("/v2/models/{name}", (NAME,)), ("/v2/models/{name}/versions/{number}", (NAME, NUMBER))):
        paths |= {
            start: get(*more),
            f"{start}/ready": get(*more),
            f"{start}/config": get(*more),
            f"{start}/stats": get(*more),
            f"{start}/trace/setting": get(*more) | post(SETTINGS, *more),
            f"{start}/infer": post(INFER, *more, TIMEOUT),
            f"{start}/generate": post(GENERATE, *more),
            f"{start}/generate_stream": post(GENERATE, *more),
        }
    for kind in ("system", "cuda"):
        paths |= {
            f"/v2/{kind}sharedmemory/status": get(),
            f"/v2/{kind}sharedmemory/region/{{region}}/status": get(REGION),
            f"/v2/{kind}sharedmemory/region/{{region}}/register": post(SHM, REGION),
            f"/v2/{kind}sharedmemory/unregister": post(CHANGE),
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Open Inference Protocol v2", "version": "2"},
        "paths": paths,
        "components": {
            "schemas": {"Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}}
        },
    }
