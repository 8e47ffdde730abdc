"""A gateway and real replicas in their sandboxes, for tests of large tensors."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from inference.protocol import routes
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, ReplicaRoute, RoutingTable, VariantRoute
from tests.support.gateway_house import Gateway, free_port, key, until
from tests.support.replica_process import Replica

MIB = 1 << 20
TWO = Signature(
    [TensorSpec("a", "FP32", [-1, -1]), TensorSpec("b", "FP32", [-1, -1])],
    [TensorSpec("c", "FP32", [-1, -1]), TensorSpec("d", "FP32", [-1, -1])],
    max_batch_size=8,
)
FATAL = 666.0


class Place:
    """A gateway with both its ports, and the replicas behind its endpoint `echo`, whose model doubles two inputs.
    is_split: each of them serves a version of its own, all of the same weight.
    """

    def __init__(self, folder: Path, replicas: int, settings: dict[str, object], *, is_split: bool = False) -> None:
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
        served = [[link] for link in links] if is_split else [links]
        weight = 10_000 // len(served)
        variants = [VariantRoute(n, "primary", weight, TWO, links) for n, links in enumerate(served, 1)]
        table = RoutingTable(
            1, [EndpointRoute("echo", "m", "salt", False, 20_000, 64, variants)], [key("all", "s2", ["*"])]
        )
        (folder / "gateway").mkdir()
        (folder / "gateway" / "routes.json").write_bytes(routes.encode(table))
        port = str(free_port())
        self.gateway = Gateway(folder, "", SERINUS_GRPC_PORT=port).wait_live().wait_ready("echo")
        until(lambda: self.gateway.get("/v2/health/ready").status_code == 200)

    def close(self) -> None:
        self.gateway.stop(signal.SIGKILL)
        for one in self.replicas:
            one.close()

    def ask(self, size: int, seed: int, **headers: str) -> None:
        """Sends two tensors of `size` bytes in all and checks every byte of the answer."""
        a, b = values(size // 2, seed), values(size // 2, seed + 1)
        status, split, found = self.post(a, b, **headers)
        assert status == 200, found[:300]
        got = np.frombuffer(found[split:], "<f4")
        assert np.array_equal(got, np.concatenate([a.ravel(), b.ravel()]) * 2)

    def post(self, *tensors: np.ndarray, **headers: str) -> tuple[int, int, bytes]:
        """Status, length of the JSON in the answer, and the answer."""
        data, given = body(*tensors)
        return self.send(data, given | headers)

    def send(self, data: bytes, headers: dict[str, str]) -> tuple[int, int, bytes]:
        """As `post`, for a whole body."""
        peer = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=60)
        try:
            with contextlib.suppress(ConnectionError):  # it may be answered before it is sent
                peer.request("POST", "/v2/models/echo/infer", data, headers)
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


def read_bytes(pid: int) -> int:
    """How much of the blocks that it may only read (those with inputs) a process has looked at."""
    found, is_ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:  # a mapping's first line begins with its addresses
            is_ours = "serinus-block" in line and " r--s " in line
        elif is_ours and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found


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


@contextlib.contextmanager
def placed(folder: Path, replicas: int = 1, *, is_split: bool = False, **settings: object) -> Iterator[Place]:
    place = Place(folder, replicas, settings, is_split=is_split)
    try:
        yield place
    finally:
        place.close()
