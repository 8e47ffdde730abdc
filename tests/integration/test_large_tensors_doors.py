"""Large tensors that come by the other doors, or before their version is known: in a lent block too, copied once if need be."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import websockets

from tests.support.gateway_house import until
from tests.support.large_tensors import MIB, Place, blocks_of, placed, read_bytes, values

SIZE = 4 * MIB
KEY = {"authorization": "Bearer ser_all.s2"}


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="big-") as name:
        yield Path(name)


def over_grpc(place: Place, size: int, seed: int) -> None:
    given = {"a": values(size // 2, seed), "b": values(size // 2, seed + 1)}
    inputs = []
    for name, one in given.items():
        inputs.append(triton.InferInput(name, list(one.shape), "FP32"))
        inputs[-1].set_data_from_numpy(one)
    with triton.InferenceServerClient(place.gateway.grpc_address) as client:
        found = client.infer("echo", inputs, headers=KEY, client_timeout=60)
    for name, output in (("a", "c"), ("b", "d")):
        assert np.array_equal(found.as_numpy(output), given[name] * 2)


def over_websocket(
    place: Place, size: int, seed: int, *, fragment_bytes: int = 0, path: str = "models/echo/stream"
) -> None:
    a, b = values(size // 2, seed), values(size // 2, seed + 1)
    inputs = [
        {"name": name, "datatype": "FP32", "shape": list(one.shape), "parameters": {"binary_data_size": one.nbytes}}
        for name, one in (("a", a), ("b", b))
    ]
    head = json.dumps({"id": "1", "model": "echo", "inputs": inputs}).encode()
    frame = len(head).to_bytes(4, "little") + head + a.tobytes() + b.tobytes()
    pieces = [frame[at : at + fragment_bytes] for at in range(0, len(frame), fragment_bytes)] if fragment_bytes else []

    async def ask() -> bytes:
        url = f"ws://127.0.0.1:{place.gateway.port}/v2/{path}"
        asked: dict[str, Any] = {"subprotocols": ["serinus.v1", "serinus.key.ser_all.s2"], "max_size": None}
        async with websockets.connect(url, **asked) as stream:
            await stream.send(pieces or frame)
            answer = await asyncio.wait_for(stream.recv(), 60)
            assert isinstance(answer, bytes)
            return answer

    answer = asyncio.run(ask())
    body = answer[4 + int.from_bytes(answer[:4], "little") :]
    assert np.array_equal(np.frombuffer(body, "<f4"), np.concatenate([a.ravel(), b.ravel()]) * 2)


def test_a_door_that_cannot_receive_into_a_block_copies_into_one(folder: Path) -> None:
    with placed(folder) as place:
        pid = place.replicas[0].process.pid
        over_grpc(place, SIZE, 1)
        assert read_bytes(pid) == 0  # there was no block yet
        over_grpc(place, SIZE, 2)
        assert read_bytes(pid) >= SIZE
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda seed: over_grpc(place, MIB * (seed % 5) or 64, seed), range(30)))
        assert place.alive()


def test_a_websocket_receives_into_a_block_whole_or_in_fragments(folder: Path) -> None:
    with placed(folder) as place:
        pid = place.replicas[0].process.pid
        seeds = iter(range(1000))
        while read_bytes(pid) < SIZE:  # the first may be here before its block is mapped there
            over_websocket(place, SIZE, seed := next(seeds))
            assert seed < 50
        over_websocket(place, SIZE, next(seeds))
        assert len(blocks_of(pid)) <= 2, "one for what is asked and one for what is answered, used again"
        over_websocket(place, 15 * MIB, 3)
        for seed, fragment in enumerate((1, 99, 65_536, 70_001, 300_007, MIB), 4):
            over_websocket(place, 600 if fragment < 100 else SIZE + 8 * seed, seed, fragment_bytes=fragment)
        over_websocket(place, MIB, 10, fragment_bytes=100_000, path="stream")
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda seed: over_websocket(place, MIB * (seed % 5) or 64, seed,
                                                      fragment_bytes=seed % 3 * 65_536), range(30)))  # fmt: skip
        assert place.alive()


def test_clients_that_leave_a_websocket_take_nobodys_tensors_along(folder: Path) -> None:
    with placed(folder) as place, ThreadPoolExecutor(2) as pool:

        async def leave() -> None:
            url = f"ws://127.0.0.1:{place.gateway.port}/v2/models/echo/stream"
            for number in range(12):
                async with websockets.connect(url, subprotocols=["serinus.v1", "serinus.key.ser_all.s2"]) as stream:  # type: ignore[list-item]
                    shape = [1, MIB // 8]
                    given = {"datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": MIB // 2}}
                    head = json.dumps({"id": "1", "inputs": [given | {"name": "a"}, given | {"name": "b"}]}).encode()
                    frame = len(head).to_bytes(4, "little") + head + bytes(MIB)
                    if number % 2:
                        await stream.send(frame)  # it goes with its request under way, or half of it here
                    else:
                        stream.transport.write(
                            bytes([0x82, 0xFF]) + len(frame).to_bytes(8, "big") + bytes(4) + frame[:700_000]
                        )
                        await asyncio.sleep(0.01)
                    stream.transport.abort()

        leaving = pool.submit(lambda: asyncio.run(leave()))
        for seed in range(20):
            over_websocket(place, MIB, seed)
        leaving.result(60)
        assert place.alive()


def test_what_was_cancelled_before_its_batch_formed_is_never_computed(folder: Path) -> None:
    async def ask(place: Place) -> dict[str, str]:
        url = f"ws://127.0.0.1:{place.gateway.port}/v2/models/echo/stream"
        one = {"datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}
        found: dict[str, str] = {}
        async with websockets.connect(url, subprotocols=["serinus.v1", "serinus.key.ser_all.s2"]) as stream:  # type: ignore[list-item]
            for identity in range(11):
                await stream.send(json.dumps({"id": str(identity), "inputs": [one | {"name": name} for name in "ab"]}))
                if identity < 5:
                    await stream.send(json.dumps({"type": "cancel", "id": str(identity)}))
            while len(found) < 11:
                frame = json.loads(await asyncio.wait_for(stream.recv(), 60))
                found[frame["id"]] = frame.get("code", "answered")
        return found

    with placed(folder, delay_until=6) as place:  # no batch forms before six wait
        found = asyncio.run(ask(place))
        assert found == {str(n): "cancelled" if n < 5 else "answered" for n in range(11)}
        stats = place.gateway.get("/v2/models/echo/stats").json()["model_stats"][0]
        assert stats["inference_count"] == 6


def test_an_endpoint_with_a_split_reads_in_blocks_at_each_of_its_versions(folder: Path) -> None:
    with placed(folder, 2, is_split=True) as place:
        pids = [one.process.pid for one in place.replicas]
        until(lambda: place.gateway.get("/v2/models/echo/versions/2/ready").status_code == 200)
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(place.ask, SIZE, seed, **{"X-Session-Id": f"s{seed}"}) for seed in range(24)]
            for one in asked:
                one.result(60)
        assert [read_bytes(pid) >= SIZE for pid in pids] == [True, True]
