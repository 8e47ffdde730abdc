"""A replica for the gateway's tests: it speaks the real frames on a unix socket and does what it is told.

It answers every output of its signature with the first input's numbers, doubled (FP32), or the bytes as they came.
`python fake_replica.py SOCKET ID GENERATION VERSION LATENCY_MS [CLASSES]` runs one in its own process, to be killed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from array import array
from pathlib import Path
from typing import cast

from inference.protocol import frames
from inference.protocol.messages import (
    Answer,
    Cancel,
    Fault,
    Goodbye,
    Hello,
    Infer,
    Ping,
    Pong,
    TensorHeader,
    ToReplica,
)


class FakeReplica:
    """latency_s: time to an answer. outputs: number of values in the output per row. fault: answer with this code.
    answers: how many a request gets; of more than one the final one is empty, as a decoupled model's may be.
    """

    def __init__(
        self,
        path: str,
        *,
        name: str = "r1",
        generation: int = 1,
        version: int = 1,
        latency_s: float = 0.0,
        outputs: int = 4,
    ) -> None:
        self.path = path
        self.name = name
        self.generation = generation
        self.version = version
        self.latency_s = latency_s
        self.outputs = outputs
        self.fault: Fault | None = None
        self.answers = 1
        self.silent = False
        self.greet = True
        self.seen: list[Infer] = []
        self.cancelled: list[int] = []
        self.pings = 0
        self.peers: set[FakePeer] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> FakeReplica:
        Path(self.path).unlink(missing_ok=True)  # noqa: ASYNC240
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: FakePeer(self), self.path)
        return self

    async def stop(self) -> None:
        """As a crash looks from outside: listener and connections vanish."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for peer in list(self.peers):
            peer.transport.abort()
        await asyncio.sleep(0)

    def goodbye(self) -> None:
        for peer in self.peers:
            peer.transport.write(frames.encode(Goodbye()))

    @property
    def address(self) -> str:
        return f"unix:{self.path}"


class FakePeer(asyncio.Protocol):
    def __init__(self, replica: FakeReplica) -> None:
        self.replica = replica
        self.decoder: frames.Decoder[ToReplica] = frames.Decoder(ToReplica)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        replica = self.replica
        replica.peers.add(self)
        if replica.greet:
            self.transport.write(frames.encode(Hello(replica.name, replica.generation, "m", replica.version, 1024)))

    def connection_lost(self, exc: Exception | None) -> None:
        self.replica.peers.discard(self)

    def data_received(self, data: bytes) -> None:
        for message, body in self.decoder.feed(data):
            if type(message) is Infer:
                self.replica.seen.append(message)
                del self.replica.seen[:-10_000]
                if self.replica.latency_s:
                    asyncio.get_running_loop().call_later(self.replica.latency_s, self.answer, message, body)
                else:
                    self.answer(message, body)
            elif type(message) is Cancel:
                self.replica.cancelled.append(message.id)
            elif type(message) is Ping:
                self.replica.pings += 1
                if not self.replica.silent:
                    self.transport.write(frames.encode(Pong(message.token)))

    def answer(self, message: Infer, body: memoryview) -> None:
        replica = self.replica
        if self.transport.is_closing() or replica.silent:
            return
        if replica.fault is not None:
            fault = Fault(message.id, replica.fault.code, replica.fault.message, replica.fault.retry_after_s)
            self.transport.write(frames.encode(fault))
            return
        first = message.tensors[0]
        if first.datatype == "FP32":
            rows = first.shape[0] if len(first.shape) > 1 else 1
            width = first.size_bytes // 4 // max(rows, 1)
            values = body[: first.size_bytes].cast("f").tolist()
            picked = [2 * v for row in range(rows) for v in values[row * width : row * width + replica.outputs]]
            data = array("f", picked).tobytes()
            header = TensorHeader("y", "FP32", [rows, len(picked) // max(rows, 1)], len(data))
        else:
            data = bytes(body[: first.size_bytes])
            header = TensorHeader("y", first.datatype, first.shape, len(data))
        several = replica.answers > 1
        for _ in range(replica.answers):
            self.transport.write(frames.encode(Answer(message.id, [header], 1, 1000, 2000, not several), data))
        if several:
            self.transport.write(frames.encode(Answer(message.id, [], 1, 1000, 2000)))


async def main(argv: list[str]) -> None:
    path, name, generation, version, latency_ms = argv[:5]
    replica = FakeReplica(
        path, name=name, generation=int(generation), version=int(version), latency_s=float(latency_ms) / 1e3
    )
    await replica.start()
    print("ready", os.getpid(), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(sys.argv[1:]))
