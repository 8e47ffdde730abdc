"""Clients that offer a fixed rate by each door, and clients that behave badly; each counts what it got."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton
import websockets

from tests.benchmarks import open_loop

KEEP = 200_000
CONNECTIONS = 8


@dataclass
class Counted:
    """What one stream of requests came to. latencies_s: of the newest answers."""

    name: str
    per_s: float
    sent: int = 0
    latencies_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def answered(self, due: float) -> None:
        self.latencies_s.append(time.perf_counter() - due)
        del self.latencies_s[:-KEEP]

    def quantile_ms(self, q: float) -> float:
        found = sorted(self.latencies_s)
        return 1e3 * found[min(len(found) - 1, int(q * len(found)))] if found else 0.0


async def paced(counted: Counted, until: float, send: Any) -> None:
    """Calls `send(due)` at the rate, whatever has become of the calls before."""
    began = time.perf_counter()
    while (now := time.perf_counter()) < until:
        while began + counted.sent / counted.per_s <= now:
            due = began + counted.sent / counted.per_s
            counted.sent += 1
            send(due)
        await asyncio.sleep(max(0.001, began + counted.sent / counted.per_s - time.perf_counter()))


async def rest(counted: Counted, url: str, requests: list[bytes], until: float) -> None:
    pool = open_loop.Pool(url)
    await paced(counted, until, lambda due: pool.send(due, requests[counted.sent % len(requests)]))
    patience = time.perf_counter() + 30
    while (pool.busy or pool.waiting) and time.perf_counter() < patience:
        await asyncio.sleep(0.01)
    counted.latencies_s = pool.latencies[-KEEP:]
    counted.errors.update({name: count for name, count in pool.errors.items() if name != "200"})
    counted.errors["never answered"] += pool.busy + len(pool.waiting)
    counted.errors = +counted.errors


async def websocket(counted: Counted, url: str, key: str, bodies: list[dict[str, Any]], until: float) -> None:
    """Several connections, many requests in flight on each."""
    waiting: dict[str, float] = {}
    options = {"subprotocols": ["serinus.v1", f"serinus.key.{key}"], "compression": None, "ping_interval": None}
    streams = [await websockets.connect(url, **options) for _ in range(CONNECTIONS)]  # type: ignore[arg-type]

    async def read(stream: Any) -> None:
        async for message in stream:
            answer = json.loads(message)
            if answer.get("type") == "ping":
                await stream.send('{"type":"pong"}')
                continue
            due = waiting.pop(answer.get("id", ""), None)
            if due is not None and "outputs" in answer:
                counted.answered(due)
            else:
                counted.errors[str(answer.get("code", answer.get("type")))] += 1

    tasks = set()
    readers = [asyncio.ensure_future(read(stream)) for stream in streams]

    def send(due: float) -> None:
        identity = str(counted.sent)
        waiting[identity] = due
        text = json.dumps(bodies[counted.sent % len(bodies)] | {"id": identity})
        task = asyncio.ensure_future(streams[counted.sent % CONNECTIONS].send(text))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await paced(counted, until, send)
    patience = time.perf_counter() + 30
    while waiting and time.perf_counter() < patience:
        await asyncio.sleep(0.01)
    counted.errors["never answered"] += len(waiting)
    counted.errors = +counted.errors
    for stream in streams:
        await stream.close()
    await asyncio.gather(*readers, return_exceptions=True)


async def grpc(counted: Counted, address: str, key: str, model: str, name: str, until: float) -> None:
    client = triton.InferenceServerClient(address)
    given = triton.InferInput(name, [1, 16], "FP32")
    given.set_data_from_numpy(np.linspace(-1, 1, 16, dtype=np.float32)[None])
    tasks: set[asyncio.Task[None]] = set()

    async def one(due: float) -> None:
        try:
            await client.infer(model, [given], headers={"authorization": f"Bearer {key}"}, client_timeout=30)
            counted.answered(due)
        except triton.InferenceServerException as error:
            counted.errors[str(error.status())] += 1

    def send(due: float) -> None:
        task = asyncio.ensure_future(one(due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await paced(counted, until, send)
    await asyncio.gather(*tasks)
    await client.close()


async def crashing(counted: Counted, port: int, request: bytes, until: float) -> None:
    """Clients that die: in their head, in their body, with a request under way, with a reset; nothing is expected."""
    rng = random.Random(3)

    async def one() -> None:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            cut = rng.choice([10, len(request) // 2, len(request) - 3, len(request), len(request)])
            writer.write(request[:cut])
            await asyncio.sleep(rng.choice([0, 0.001, 0.02, 0.2]))
            if rng.random() < 0.5:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    tasks: set[asyncio.Task[None]] = set()

    def send(_: float) -> None:
        task = asyncio.ensure_future(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await paced(counted, until, send)
    await asyncio.gather(*tasks)
