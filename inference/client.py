"""Client of the data plane: what the console's try-it form and the command line call a gateway with.

Inputs and outputs are tensors as Open Inference Protocol JSON: {"name", "shape", "datatype", "data"}. Errors of the
gateway are raised as the classes of `inference.errors` that they left it as.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from inference.errors import DeadlineExceeded, NotReady, Rejected, SerinusError, ServerError, by_code
from inference.protocol.compare import Output

Tensor = Mapping[str, Any]
_STATUSES = {400: "invalid_request", 401: "unauthenticated", 403: "forbidden", 404: "not_found", 413: "too_large"}
_SLACK_S = 5.0
HEAD_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer. outputs: tensors with flat row-major `data`; took_ms: as this client saw it; parameters: what came with
    it besides tensors.
    """

    outputs: list[dict[str, Any]]
    model_version: str
    arm: str
    request_id: str
    took_ms: float
    parameters: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        """The data of output `name`. Raises KeyError."""
        for output in self.outputs:
            if output["name"] == name:
                return output["data"]
        raise KeyError(name)


def _path(endpoint: str, version: int | None, verb: str = "") -> str:
    pinned = f"/versions/{version}" if version is not None else ""
    return f"/v2/models/{quote(endpoint, safe='')}{pinned}{verb}"


def _headers(key: str, session: str = "", timeout_s: float = 0.0) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if session:
        headers["X-Session-Id"] = session
    if timeout_s:
        headers["X-Request-Timeout-Ms"] = str(max(1, int(timeout_s * 1e3)))
    return headers


def _body(
    inputs: Sequence[Tensor], outputs: Sequence[str] | None, parameters: Mapping[str, Any] | None, identity: str
) -> dict[str, Any]:
    body: dict[str, Any] = {"inputs": [dict(tensor) for tensor in inputs]}
    if identity:
        body["id"] = identity
    if outputs:
        body["outputs"] = [{"name": name} for name in outputs]
    if parameters:
        body["parameters"] = dict(parameters)
    return body


def _error(response: httpx.Response) -> SerinusError:
    try:
        message = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        message = f"the gateway answered with status {response.status_code}"
    cls = by_code(response.headers.get("x-error-code") or _STATUSES.get(response.status_code, "internal"))
    after = response.headers.get("retry-after", "")
    if issubclass(cls, Rejected):
        return ServerError(message)
    return cls(message, retry_after_s=float(after) if after.isdigit() else None)


def _json(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != httpx.codes.OK:
        raise _error(response)
    found: dict[str, Any] = response.json()
    return found


def _prediction(response: httpx.Response) -> Prediction:
    body = _json(response)
    return Prediction(
        outputs=body["outputs"],
        model_version=body["model_version"],
        arm=response.headers.get("x-rollout-arm", ""),
        request_id=response.headers.get("x-request-id", ""),
        took_ms=response.elapsed.total_seconds() * 1e3,
        parameters=body.get("parameters") or {},
    )


def _unreachable(error: httpx.HTTPError) -> SerinusError:
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceeded()
    return NotReady("The gateway cannot be reached", retry_after_s=1.0)


def _binary_body(tensors: Sequence[Output], parameters: Mapping[str, Any] | None) -> tuple[bytes, bytes]:
    """The JSON head and what follows it, by the protocol's binary extension."""
    inputs = [
        {
            "name": t.name,
            "datatype": t.datatype,
            "shape": list(t.shape),
            "parameters": {"binary_data_size": len(t.data)},
        }
        for t in tensors
    ]
    head = {"inputs": inputs, "parameters": {**(parameters or {}), "binary_data_output": True}}
    return json.dumps(head).encode(), b"".join(bytes(t.data) for t in tensors)


def _binary_outputs(response: httpx.Response) -> list[Output]:
    """Raises as `_json`; ServerError for an answer whose parts do not fit."""
    if response.status_code != httpx.codes.OK:
        raise _error(response)
    size = int(response.headers.get(HEAD_LENGTH, len(response.content)))
    found, at = [], size
    try:
        for told in json.loads(response.content[:size])["outputs"]:
            end = at + int(told["parameters"]["binary_data_size"])
            found.append(Output(told["name"], told["datatype"], told["shape"], response.content[at:end]))
            at = end
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError("the gateway's answer could not be read") from error
    return found


class Client:
    """Calls a gateway at `url` with the API key `key`; `timeout_s` is every call's default deadline."""

    def __init__(self, url: str, key: str = "", *, timeout_s: float = 30.0) -> None:
        self._key = key
        self._timeout_s = timeout_s
        self._http = httpx.Client(base_url=url, timeout=timeout_s + _SLACK_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def infer(
        self,
        endpoint: str,
        inputs: Sequence[Tensor],
        *,
        version: int | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        session: str = "",
        identity: str = "",
        timeout_s: float = 0.0,
    ) -> Prediction:
        """One prediction. Raises the SerinusError that the gateway answered, NotReady when it cannot be reached."""
        response = self._send(
            "POST",
            _path(endpoint, version, "/infer"),
            headers=_headers(self._key, session, timeout_s or self._timeout_s),
            json=_body(inputs, outputs, parameters, identity),
        )
        return _prediction(response)

    def infer_bytes(
        self,
        endpoint: str,
        tensors: Sequence[Output],
        *,
        version: int | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float = 0.0,
    ) -> list[Output]:
        """One prediction with every tensor as bytes, there and back, so that each datatype and NaN too can travel.
        Raises as `infer`.
        """
        head, rest = _binary_body(tensors, parameters)
        headers = {"Content-Type": "application/octet-stream", HEAD_LENGTH: str(len(head))}
        response = self._send(
            "POST",
            _path(endpoint, version, "/infer"),
            headers=_headers(self._key, timeout_s=timeout_s or self._timeout_s) | headers,
            content=head + rest,
        )
        return _binary_outputs(response)

    def ready(self, endpoint: str = "", *, version: int | None = None) -> bool:
        """Whether the gateway, or one endpoint, can answer now."""
        path = _path(endpoint, version, "/ready") if endpoint else "/v2/health/ready"
        try:
            return self._send("GET", path, headers=_headers(self._key)).status_code == httpx.codes.OK
        except SerinusError:
            return False

    def metadata(self, endpoint: str = "", *, version: int | None = None) -> dict[str, Any]:
        """The server's, or one endpoint's, name, versions, inputs and outputs. Raises as `infer`."""
        path = _path(endpoint, version) if endpoint else "/v2"
        return _json(self._send("GET", path, headers=_headers(self._key)))

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise _unreachable(error) from error


class AsyncClient:
    """The same for asyncio."""

    def __init__(self, url: str, key: str = "", *, timeout_s: float = 30.0) -> None:
        self._key = key
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout_s + _SLACK_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def infer(
        self,
        endpoint: str,
        inputs: Sequence[Tensor],
        *,
        version: int | None = None,
        outputs: Sequence[str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        session: str = "",
        identity: str = "",
        timeout_s: float = 0.0,
    ) -> Prediction:
        """As Client.infer."""
        response = await self._send(
            "POST",
            _path(endpoint, version, "/infer"),
            headers=_headers(self._key, session, timeout_s or self._timeout_s),
            json=_body(inputs, outputs, parameters, identity),
        )
        return _prediction(response)

    async def ready(self, endpoint: str = "", *, version: int | None = None) -> bool:
        """As Client.ready."""
        path = _path(endpoint, version, "/ready") if endpoint else "/v2/health/ready"
        try:
            return (await self._send("GET", path, headers=_headers(self._key))).status_code == httpx.codes.OK
        except SerinusError:
            return False

    async def metadata(self, endpoint: str = "", *, version: int | None = None) -> dict[str, Any]:
        """As Client.metadata."""
        path = _path(endpoint, version) if endpoint else "/v2"
        return _json(await self._send("GET", path, headers=_headers(self._key)))

    async def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            return await self._http.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
