"""A WebSocket client as somebody would write it who has read docs/websocket.md and knows nothing else of us.

It uses `websockets` and `struct`, and nothing of ours: what it cannot do, the page does not say.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Iterable
from typing import Any, Self

import websockets

FORMATS = {"FP32": "f", "INT64": "q"}  # little-endian and row-major
Frame = dict[str, Any]


class Refused(Exception):
    """An error frame: error, code, retry_after_s."""


class Stranger:
    def __init__(self, url: str, key: str) -> None:
        self.url, self.key = url, key
        self.kinds: set[str] = set()
        self.waiting: dict[str, asyncio.Queue[Frame]] = {}

    async def __aenter__(self) -> Self:
        offered: Any = ["serinus.v1", f"serinus.key.{self.key}"]
        self.socket = await websockets.connect(self.url, subprotocols=offered, max_size=None)
        assert self.socket.subprotocol == "serinus.v1"
        self.reader = asyncio.create_task(self.read())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.socket.close()
        await self.reader

    async def read(self) -> None:
        async for message in self.socket:
            frame = json.loads(message) if isinstance(message, str) else opened(message)
            self.kinds.add(frame.get("type", "infer"))
            if frame.get("type") == "ping":
                await self.socket.send('{"type": "pong"}')
            elif frame.get("id") in self.waiting:
                self.waiting[frame["id"]].put_nowait(frame)

    async def tell(self, kind: str, identity: str, **more: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, "id": identity} | more))

    async def ask(
        self, identity: str, body: Frame, tensors: Iterable[tuple[str, list[int], list[float]]] = ()
    ) -> AsyncIterator[Frame]:
        """Every frame of this request; the last one ends it."""
        came = self.waiting[identity] = asyncio.Queue()
        data = b""
        if tensors:
            body = body | {"inputs": []}
            for name, shape, values in tensors:
                packed = struct.pack(f"<{len(values)}f", *values)
                size = {"binary_data_size": len(packed)}
                body["inputs"].append({"name": name, "shape": shape, "datatype": "FP32", "parameters": size})
                data += packed
        text = json.dumps({"id": identity} | body)
        await self.socket.send(struct.pack("<I", len(text.encode())) + text.encode() + data if data else text)
        is_last = False
        while not is_last:
            frame = await asyncio.wait_for(came.get(), 30)
            if "error" in frame:
                raise Refused(frame["error"], frame["code"], frame.get("retry_after_s"))
            # every request ends with one last frame: an answer that does not say `final: false`; chunks end with `done`
            is_last = frame["type"] == "done" if frame.get("type") in {"chunk", "done"} else frame.get("final", True)
            yield frame
        del self.waiting[identity]

    async def one(
        self, identity: str, body: Frame, tensors: Iterable[tuple[str, list[int], list[float]]] = ()
    ) -> Frame:
        found = [frame async for frame in self.ask(identity, body, tensors)]
        assert len(found) == 1
        return found[0]


def opened(message: bytes) -> Frame:
    """A binary frame's JSON, with the values of each output that followed as bytes in its `data`."""
    size = struct.unpack_from("<I", message)[0]
    frame, at = json.loads(message[4 : 4 + size]), 4 + size
    for output in frame.get("outputs", []):
        length = output["parameters"]["binary_data_size"]
        form = FORMATS[output["datatype"]]
        output["data"] = list(struct.unpack_from(f"<{length // struct.calcsize(form)}{form}", message, at))
        at += length
    assert at == len(message)
    return frame
