"""A replica for the gateway's tests: it speaks the real frames on a unix socket and does what it is told.

It answers every output of its signature with the first input's numbers times `factor` (FP32), or the bytes as they came.
A request with the parameter `parts` is answered that many times, `latency_s` apart, and then by an empty last answer;
with `part_bytes` each of them holds that many.
`python fake_replica.py SOCKET ID GENERATION VERSION LATENCY_MS [CLASSES]` runs one in its own process, to be killed.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from array import array
from pathlib import Path
from typing import cast

from inference.protocol import frames
from inference.protocol.messages import (
    Answer,
    Ask,
    Cancel,
    Fault,
    Goodbye,
    Hello,
    Infer,
    Pause,
    Ping,
    Pong,
    Resume,
    TensorHeader,
    Told,
    ToReplica,
)
from inference.protocol.statistics import BatchStatistics, ModelStatistics, ResponseStatistics

QUEUE_NS, INPUT_NS, INFER_NS, OUTPUT_NS = 1000, 500, 2000, 300


class FakeReplica:
    """latency_s: time to an answer. outputs: number of values in the output per row. fault: answer with this code.

    answers: how many there are to a request, as a decoupled model gives them, `pace_s` apart; with `ends_empty` the
    final one comes after them and has no tensors. breaks_after: so many answers, then the fault.
    statistics: exact sums of what was answered, told when asked. faulty_share: part of the requests that get the
    fault. kills_at: an input whose first number is this ends the replica, as a crash does, when it would be answered;
    it is back `restart_s` later. holds: requests wait in `held` until `let_go` is called, in the replica's own loop.
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
        self.faulty_share = 1.0
        self.random = random.Random(1)
        self.kills_at: float | None = None
        self.restart_s = 0.1
        self.deaths = 0
        self.is_up = True
        self.echoes = False  # FP32 too comes back as it came
        self.is_invalid = False  # as one whose outputs hold NaN says
        self.factor = 2.0
        self.answers = 1
        self.ends_empty = False
        self.breaks_after = -1
        self.pace_s = 0.0
        self.pauses = 0
        self.statistics = ModelStatistics()
        self.silent = False
        self.holds = False
        self.held: list[tuple[FakePeer, Infer, memoryview]] = []
        self.greet = True
        self.seen: list[Infer] = []
        self.cancelled: list[int] = []
        self.pings = 0
        self.parts_sent = 0
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

    def die(self) -> None:
        self.deaths += 1
        self.is_up = False
        self._dying = asyncio.ensure_future(self._die())

    async def _die(self) -> None:
        await self.stop()
        await asyncio.sleep(self.restart_s)
        await self.start()
        self.is_up = True

    def let_go(self) -> None:
        self.holds = False
        while self.held:
            peer, message, body = self.held.pop(0)
            peer.answer(message, body)

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
        self.streams: dict[int, asyncio.Task[None]] = {}
        # Of this connection: each gateway counts from 1.
        self.given_up: set[int] = set()
        self.paused: set[int] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        replica = self.replica
        replica.peers.add(self)
        if replica.greet:
            self.transport.write(frames.encode(Hello(replica.name, replica.generation, "m", replica.version, 1024)))

    def connection_lost(self, exc: Exception | None) -> None:
        self.replica.peers.discard(self)
        for task in self.streams.values():
            task.cancel()

    def data_received(self, data: bytes) -> None:
        for message, body in self.decoder.feed(data):
            if type(message) is Infer:
                self.replica.seen.append(message)
                del self.replica.seen[:-10_000]
                if "parts" in message.parameters:
                    self.streams[message.id] = asyncio.ensure_future(self.answer_often(message))
                elif self.replica.holds:
                    self.replica.held.append((self, message, body))
                elif self.replica.latency_s:
                    asyncio.get_running_loop().call_later(self.replica.latency_s, self.answer, message, body)
                else:
                    self.answer(message, body)
            elif type(message) is Cancel:
                self.replica.cancelled.append(message.id)
                self.given_up.add(message.id)
                if message.id in self.streams:
                    self.streams.pop(message.id).cancel()
            elif type(message) is Pause:
                self.paused.add(message.id)
                self.replica.pauses += 1
            elif type(message) is Resume:
                self.paused.discard(message.id)
            elif type(message) is Ask and not self.replica.silent:
                self.transport.write(frames.encode(Told(message.id, self.replica.statistics)))
            elif type(message) is Ping:
                self.replica.pings += 1
                if not self.replica.silent:
                    self.transport.write(frames.encode(Pong(message.token)))

    async def answer_often(self, message: Infer) -> None:
        size = int(message.parameters.get("part_bytes", 4))
        for number in range(int(message.parameters["parts"])):
            await asyncio.sleep(self.replica.latency_s)
            while message.id in self.paused:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            data = array("f", [float(number)]).tobytes() * (size // 4)
            header = TensorHeader("y", "FP32", [1, size // 4], len(data))
            self.transport.write(frames.encode(Answer(message.id, [header], 1, 1000, 2000, final=False), data))
            self.replica.parts_sent += 1
        self.transport.write(frames.encode(Answer(message.id, [], 1, 1000, 2000)))
        del self.streams[message.id]

    def answer(self, message: Infer, body: memoryview) -> None:
        replica = self.replica
        if self.transport.is_closing() or replica.silent:
            return
        if replica.kills_at is not None and body[:4].cast("f")[0] == replica.kills_at:
            replica.die()
            return
        if replica.fault is not None and replica.breaks_after < 0 and replica.random.random() < replica.faulty_share:
            fault = Fault(message.id, replica.fault.code, replica.fault.message, replica.fault.retry_after_s)
            self.transport.write(frames.encode(fault))
            return
        first = message.tensors[0]
        if first.datatype == "FP32" and not replica.echoes:
            rows = first.shape[0] if len(first.shape) > 1 else 1
            width = first.size_bytes // 4 // max(rows, 1)
            values = body[: first.size_bytes].cast("f").tolist()
            picked = [
                replica.factor * v for row in range(rows) for v in values[row * width : row * width + replica.outputs]
            ]
            data = array("f", picked).tobytes()
            header = TensorHeader("y", "FP32", [rows, len(picked) // max(rows, 1)], len(data))
        else:
            data = bytes(body[: first.size_bytes])
            header = TensorHeader("y", first.datatype, first.shape, len(data))
        self.count(first.shape[0] if len(first.shape) > 1 else 1)
        self.part(message.id, header, data, 0)

    def part(self, number: int, header: TensorHeader, data: bytes, index: int) -> None:
        """The next answer of a request, and those after it."""
        replica = self.replica
        if self.transport.is_closing() or number in self.given_up:
            return
        again = asyncio.get_running_loop().call_later
        if number in self.paused:
            again(0.01, self.part, number, header, data, index)
            return
        if replica.fault is not None and index == replica.breaks_after:
            self.transport.write(frames.encode(Fault(number, replica.fault.code, replica.fault.message)))
            return
        if index == replica.answers:
            self.transport.write(frames.encode(Answer(number, [], 1, QUEUE_NS, INFER_NS, True, INPUT_NS, OUTPUT_NS)))
            return
        final = index == replica.answers - 1 and not replica.ends_empty
        if not final or index:
            replica.statistics.responses.setdefault(index, ResponseStatistics()).answered(INFER_NS)
        self.transport.write(
            frames.encode(
                Answer(
                    number, [header], 1, QUEUE_NS, INFER_NS, final, INPUT_NS, OUTPUT_NS, is_invalid=replica.is_invalid
                ),
                data,
            )
        )
        if not final:
            if replica.pace_s:
                again(replica.pace_s, self.part, number, header, data, index + 1)
            else:
                self.part(number, header, data, index + 1)

    def count(self, rows: int) -> None:
        sums = self.replica.statistics
        sums.inference_count += rows
        sums.execution_count += 1
        sums.last_inference_ms = 1_700_000_000_000 + sums.execution_count
        sums.success.add(QUEUE_NS + INPUT_NS + INFER_NS + OUTPUT_NS)
        sums.queue.add(QUEUE_NS)
        batch = sums.batches.setdefault(rows, BatchStatistics())
        for one in (sums, batch):
            one.compute_input.add(INPUT_NS)
            one.compute_infer.add(INFER_NS)
            one.compute_output.add(OUTPUT_NS)


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
