"""A gateway before a real replica whose model keeps count of what it has run, so that what must not run is seen not to.

The model takes rows of two numbers and answers one. A row (v, GATE) is not answered before the gate is opened, as a long
pass is not; (v, RAISE), (v, EXIT), (v, INTERRUPT) and (v, BARE) raise; (v, COUNT) says how often a row with that first
number was run; all others come back.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from inference.protocol import routes
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, ReplicaRoute, RoutingTable, VariantRoute
from tests.support.gateway_house import Gateway, free_port, key, until
from tests.support.replica_process import Replica

SIGNATURE = Signature([TensorSpec("x", "FP32", [-1, 2])], [TensorSpec("y", "FP32", [-1, 1])], max_batch_size=16)
NOTHING, COUNT, GATE, RAISE, EXIT, INTERRUPT, BARE = range(7)
SOURCE = """
import collections, json, sys, time
from pathlib import Path
import numpy as np

class Panic(BaseException):
    pass

class Counting:
    signature = json.loads(%r)

    def __init__(self, folder):
        self.gate, self.ran = Path(folder) / "open", collections.Counter()

    def predict(self, inputs):
        answers, rows = [], [(float(v), int(kind)) for v, kind in inputs["x"]]
        raising = {3: RuntimeError, 4: SystemExit, 5: KeyboardInterrupt, 6: Panic}
        for value, kind in rows:
            if kind == 1:
                answers.append(self.ran[value])
                continue
            self.ran[value] += 1
            while kind == 2 and not self.gate.exists():
                time.sleep(0.002)
            answers.append(value)
        for value, kind in rows:
            if kind in raising:
                raise raising[kind]("asked to")
        return {"y": np.array(answers, np.float32)[:, None]}

def load(folder):
    return Counting(folder)
"""


class Counted:
    """The endpoint `counting`, and the hand at its gate."""

    def __init__(self, folder: Path, **env: str) -> None:
        source = folder / "model"
        source.mkdir()
        (source / "serinus_model.py").write_text(SOURCE % routes.msgspec.json.encode(SIGNATURE).decode())
        self.replica = Replica(folder / "r", source, "python", {"window_ms": 0.0}).ready()
        (self._folder,) = {one.parent for one in (folder / "r" / "work").rglob("serinus_model.py")}
        variant = VariantRoute(1, "primary", 10_000, SIGNATURE, [ReplicaRoute("r1", 1, f"unix:{self.replica.path}")])
        endpoint = EndpointRoute("counting", "m", "salt", False, 60_000, 64, [variant])
        (folder / "gateway").mkdir()
        table = RoutingTable(1, [endpoint], [key("all", "s2", ["*"])])
        (folder / "gateway" / "routes.json").write_bytes(routes.encode(table))
        self.gateway = Gateway(folder, "", SERINUS_GRPC_PORT=str(free_port()), **env).wait_live().wait_ready("counting")

    def ask(self, value: float, kind: int = NOTHING, **headers: str) -> httpx.Response:
        return self.gateway.post("/v2/models/counting/infer", json=body(value, kind), headers=headers)

    def runs(self, value: float) -> int:
        """How often the model has run it."""
        return int(self.ask(value, COUNT).json()["outputs"][0]["data"][0])

    def under_way(self) -> int:
        line = next(
            line
            for line in self.gateway.get("/metrics").text.splitlines()
            if line.startswith("serinus_requests_in_flight ")
        )
        return int(float(line.split()[1]))

    @contextmanager
    def busy(self, value: float) -> Iterator[Future[httpx.Response]]:
        """The model is in a pass that ends when the block does."""
        with ThreadPoolExecutor(1) as pool:
            passing = pool.submit(self.ask, value, GATE)
            try:
                until(lambda: self.under_way() == 1)
                yield passing
            finally:
                (self._folder / "open").touch()
                passing.result(30)
                (self._folder / "open").unlink()

    def close(self) -> None:
        self.gateway.stop(signal.SIGKILL)
        self.replica.close()


def body(value: float, kind: int = NOTHING, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [value, kind]}], **more}
