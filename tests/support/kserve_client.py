"""KServe's own client, as it is, against a gateway: `python kserve_client.py HTTP_URL GRPC_ADDRESS KEY` prints what it
got, in one JSON object.

A process of its own: its protobuf messages bear the names that Triton's client's have, and one process takes one of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

DATATYPES = {
    "INT8": "i1", "INT16": "i2", "INT32": "i4", "INT64": "i8", "UINT8": "u1", "UINT16": "u2", "UINT32": "u4",
    "UINT64": "u8", "FP16": "f2", "FP64": "f8", "BOOL": "?",
}  # fmt: skip


def request(model: str, datatype: str, values: np.ndarray[Any, Any], *, binary: bool, name: str = "x") -> InferRequest:
    given = InferInput(name=name, shape=list(values.shape), datatype=datatype)
    given.set_data_from_numpy(values, binary_data=binary)
    # FP16 cannot go back in JSON, and this client's answers are JSON unless it says so
    parameters = {"binary_data_output": True} if datatype == "FP16" else None
    return InferRequest(model_name=model, infer_inputs=[given], request_id=f"{model}-1", parameters=parameters)


def mlp(*, binary: bool) -> InferRequest:
    return request("mlp", "FP32", np.arange(32, dtype=np.float32).reshape(2, 16), binary=binary)


def of_type(datatype: str, *, binary: bool) -> InferRequest:
    values = np.array([[0, 1], [1, 0]], DATATYPES[datatype])
    return request(datatype.lower(), datatype, values, binary=binary)


def texts(*, binary: bool) -> InferRequest:
    return request("text", "BYTES", np.array([[b"gr\xc3\xbcn"], [b"b"]], object), binary=binary, name="text")


def told(answer: Any) -> dict[str, Any]:
    output = answer.outputs[0]
    values = output.as_numpy()
    data = [item.decode() if isinstance(item, bytes) else item for item in values.ravel().tolist()]
    return {"model": answer.model_name, "id": answer.id, "shape": list(values.shape), "data": data}


async def refused(call: Awaitable[Any]) -> str:
    """What the client raises."""
    try:
        await call
    except httpx.HTTPStatusError as error:
        return f"{error.response.status_code} {error}"
    except grpc.RpcError as error:
        return f"{error.code().name} {error.details()}"
    return "nothing was raised"


async def rest(url: str, key: str) -> dict[str, Any]:
    def headers(value: str = key) -> dict[str, str]:
        return {"Authorization": f"Bearer {value}"}  # the client adds its own to what it is given

    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        found: dict[str, Any] = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model ready": await client.is_model_ready(url, "mlp", headers=headers()),
            "unready": await client.is_model_ready(url, "empty", headers=headers()),
        }
        for binary in (False, True):
            form = "binary" if binary else "json"
            asks = {"mlp": mlp(binary=binary), "text": texts(binary=binary)}
            asks |= {kind: of_type(kind, binary=binary) for kind in DATATYPES if binary or kind != "FP16"}
            for name, ask in asks.items():
                answer = await client.infer(url, ask, model_name=ask.model_name, headers=headers())
                found[f"{form} {name}"] = told(answer)
        found["no key"] = await refused(client.infer(url, mlp(binary=True), model_name="mlp"))
        found["no model"] = await refused(client.infer(url, mlp(binary=True), model_name="gone", headers=headers()))
        wrong = request("mlp", "FP32", np.zeros((1, 3), np.float32), binary=True)
        found["wrong shape"] = await refused(client.infer(url, wrong, model_name="mlp", headers=headers()))
        return found


async def over_grpc(address: str, key: str) -> dict[str, Any]:
    headers = (("authorization", f"Bearer {key}"),)
    async with InferenceGRPCClient(address, retries=0) as client:
        found: dict[str, Any] = {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model ready": await client.is_model_ready("mlp", headers=headers),
            "unready": await client.is_model_ready("empty", headers=headers),
        }
        asks = {"mlp": mlp(binary=True), "text": texts(binary=True)}
        asks |= {kind: of_type(kind, binary=True) for kind in DATATYPES}
        for name, ask in asks.items():
            found[f"binary {name}"] = told(await client.infer(ask, headers=headers))
        found["no key"] = await refused(client.infer(mlp(binary=True)))
        gone = request("gone", "FP32", np.zeros((1, 16), np.float32), binary=True)
        found["no model"] = await refused(client.infer(gone, headers=headers))
        wrong = request("mlp", "FP32", np.zeros((1, 3), np.float32), binary=True)
        found["wrong shape"] = await refused(client.infer(wrong, headers=headers))
        return found


async def main(url: str, address: str, key: str) -> None:
    logging.disable(logging.CRITICAL)  # it logs each refusal with a traceback, on stdout
    print(json.dumps({"rest": await rest(url, key), "grpc": await over_grpc(address, key)}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
