"""Large tensors through a real gateway and a real replica in its sandbox: in lent blocks, or through the socket."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from inference.protocol import routes
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, ReplicaRoute, RoutingTable, VariantRoute
from tests.support.gateway_house import Gateway, key, until
from tests.support.replica_process import Replica

MIB = 1 << 20
TWO = Signature(
    [TensorSpec("a", "FP32", [-1, -1]), TensorSpec("b", "FP32", [-1, -1])],
    [TensorSpec("c", "FP32", [-1, -1]), TensorSpec("d", "FP32", [-1, -1])],
    max_batch_size=8,
)
FATAL = 666.0


class Place:
    """A gateway and the replicas behind its endpoint `echo`, whose model doubles two inputs."""

    def __init__(self, folder: Path, replicas: int, settings: dict[str, object]) -> None:
        plan = {
            "signature": json.loads(routes.msgspec.json.encode(TWO)),
            "factor": 2.0,
            "faults": [{"value": FATAL, "kind": "raise"}],
        }
        (folder / "model").mkdir()
        (folder / "model" / "echo.json").write_text(json.dumps(plan))
        self.replicas = [
            Replica(folder / f"r{n}", folder / "model", "echo", settings, name=f"r{n}") for n in range(replicas)
        ]
        links = [ReplicaRoute(f"r{n}", 1, f"unix:{one.ready().path}") for n, one in enumerate(self.replicas)]
        variant = VariantRoute(1, "primary", 10_000, TWO, links)
        table = RoutingTable(
            1, [EndpointRoute("echo", "m", "salt", False, 20_000, 64, [variant])], [key("all", "s2", ["*"])]
        )
        (folder / "gateway").mkdir()
        (folder / "gateway" / "routes.json").write_bytes(routes.encode(table))
        self.gateway = Gateway(folder, "").wait_live().wait_ready("echo")

    def close(self) -> None:
        self.gateway.stop(signal.SIGKILL)
        for one in self.replicas:
            one.close()

    def ask(self, size: int, seed: int) -> None:
        """Sends two tensors of `size` bytes in all and checks every byte of the answer."""
        a, b = values(size // 2, seed), values(size // 2, seed + 1)
        status, split, found = self.post(a, b)
        assert status == 200, found[:300]
        got = np.frombuffer(found[split:], "<f4")
        assert np.array_equal(got, np.concatenate([a.ravel(), b.ravel()]) * 2)

    def post(self, *tensors: np.ndarray) -> tuple[int, int, bytes]:
        """Status, length of the JSON in the answer, and the answer."""
        peer = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=60)
        try:
            peer.request("POST", "/v2/models/echo/infer", *body(*tensors))
            found = peer.getresponse()
            return found.status, int(found.headers.get("inference-header-content-length", 0)), found.read()
        finally:
            peer.close()

    def mapped(self) -> set[int]:
        """Sizes of the blocks that the replicas have mapped."""
        return {size for one in self.replicas for size in blocks_of(one.process.pid)}

    def alive(self) -> bool:
        return all(one.process.poll() is None for one in self.replicas)


def blocks_of(pid: int) -> list[int]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in lines if "serinus-block" in line]
    return [int(end, 16) - int(start, 16) for start, end in spans]


def values(size: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, size // 4), np.float32)


def body(*tensors: np.ndarray) -> tuple[bytes, dict[str, str]]:
    inputs = [
        {"name": name, "datatype": "FP32", "shape": list(one.shape), "parameters": {"binary_data_size": one.nbytes}}
        for name, one in zip("ab", tensors, strict=False)
    ]
    text = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(text)), "Authorization": "Bearer ser_all.s2"}
    return b"".join((text, *(one.tobytes() for one in tensors))), headers


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="big-") as name:
        yield Path(name)


@contextlib.contextmanager
def placed(folder: Path, replicas: int = 1, **settings: object) -> Iterator[Place]:
    place = Place(folder, replicas, settings)
    try:
        yield place
    finally:
        place.close()


def test_every_byte_comes_back_in_every_size(folder: Path) -> None:
    with placed(folder) as place:
        for seed, size in enumerate([8, 65_536, MIB // 4, MIB, MIB, 3 * MIB, 16 * MIB, 16 * MIB, 800, MIB, 40 * MIB]):
            place.ask(size, seed)
        assert {16 * MIB + MIB // 4, 16 * MIB} & place.mapped()


def test_many_at_once_get_each_their_own_from_two_replicas(folder: Path) -> None:
    with placed(folder, 2) as place, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: place.ask(MIB + 8 * seed, seed), range(64)))
        assert all(blocks_of(one.process.pid) for one in place.replicas)


def test_a_model_with_a_cache_is_lent_nothing(folder: Path) -> None:
    with placed(folder, response_cache_bytes=8 * MIB) as place:
        for seed in (1, 2, 1, 2):
            place.ask(MIB, seed)
        assert place.mapped() == set()


def test_a_fault_costs_its_block_and_nobody_elses_answer(folder: Path) -> None:
    with placed(folder) as place, ThreadPoolExecutor(4) as pool:

        def one(seed: int) -> None:
            if seed % 4:
                place.ask(MIB, seed)
                return
            assert place.post(np.full((1, 1 << 17), FATAL, np.float32), values(MIB // 2, seed))[0] >= 400

        list(pool.map(one, range(40)))
        place.ask(MIB, 99)
        assert place.alive()


def test_clients_that_leave_take_nobodys_tensors_along(folder: Path) -> None:
    with placed(folder) as place:
        data, headers = body(values(MIB, 1), values(MIB, 2))
        head = f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        stop = threading.Event()

        def leave() -> None:
            part = 0
            while not stop.wait(0.02):
                part = (part + 700_001) % (len(data) + 1)
                with socket.create_connection(("127.0.0.1", place.gateway.port)) as peer:
                    peer.sendall(head.encode() + data[: part or len(data)])

        leaver = threading.Thread(target=leave)
        leaver.start()
        try:
            for seed in range(30):
                place.ask(2 * MIB, seed)
        finally:
            stop.set()
            leaver.join()
        assert place.alive()


def test_small_requests_beside_large_ones_are_answered_in_order_of_their_own(folder: Path) -> None:
    with placed(folder) as place, ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda seed: place.ask(MIB * (seed % 5) or 64, seed), range(60)))


def test_a_replica_that_dies_with_a_large_request_under_way_costs_no_answer(folder: Path) -> None:
    with placed(folder, 2) as place:
        for seed in range(4):
            place.ask(4 * MIB, seed)
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(place.ask, 4 * MIB, seed) for seed in range(24)]
            os.kill(place.replicas[0].process.pid, signal.SIGKILL)
            for one in asked:
                one.result(60)


def test_blocks_that_nobody_uses_any_more_are_given_back(folder: Path) -> None:
    with placed(folder) as place:
        place.ask(8 * MIB, 1)
        place.ask(8 * MIB, 2)
        assert place.mapped()
        until(lambda: not place.mapped() and not blocks_of(place.gateway.process.pid), 20)
        place.ask(8 * MIB, 3)
