"""The infer path through gateway and replica: requests a second on one core, and bytes a second of large tensors.

`pinned`: gateway and replica share core 0, the load comes from core 1. Key check, routing, metrics and deadlines are
on, as always. Large tensors go through an identity model as binary tensors; beside them stands what one `memcpy` of
the same bytes takes on this machine.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import loadgen

CONNECTIONS = (1, 32, 128)
SIZES_MB = (1, 16)


def identity(folder: Path) -> None:
    """y = x for rows of any number of floats, in torch."""
    import torch

    class Same(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.clone()

    folder.mkdir(parents=True, exist_ok=True)
    shape = ({0: torch.export.Dim("rows", min=1, max=8), 1: torch.export.Dim("n", min=1, max=1 << 23)},)
    program = torch.export.export(Same().eval(), (torch.zeros(2, 8),), dynamic_shapes=shape)
    torch.export.save(program, folder / "same.pt2")


def pin(pids: list[int], cores: str) -> None:
    for pid in pids:
        subprocess.run(["taskset", "-apc", cores, str(pid)], stdout=subprocess.DEVNULL, check=True)


def rates(report: Any, url: str, requests: list[bytes], pids: list[int], seconds: float) -> None:
    """Rows of the table, pinned and free."""
    everybody, own = f"0-{(os.cpu_count() or 1) - 1}", os.sched_getaffinity(0)
    for mode, cores, mine in (("pinned", "0", {1}), ("free", everybody, own)):
        pin(pids, cores)
        os.sched_setaffinity(0, mine if (os.cpu_count() or 1) > 1 else own)
        try:
            for connections in CONNECTIONS:
                found = loadgen.measure(url, requests, connections, seconds, pids)
                report.row(
                    mode, connections, f"{found.requests_per_s:.0f}", f"{found.p50_ms:.2f}", f"{found.p99_ms:.2f}",
                    f"{found.cpu_ms_per_request:.3f}", f"{found.server_cores:.2f}", f"{found.client_cores:.2f}",
                    found.errors or "",
                )  # fmt: skip
        finally:
            os.sched_setaffinity(0, own)
            pin(pids, everybody)


def memcpy_s(size: int) -> float:
    source, target = bytes(size), bytearray(size)
    taken = []
    for _ in range(9):
        began = time.perf_counter()
        target[:] = source
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def tensor_s(url: str, key: str, name: str, size: int, times: int = 9) -> float:
    """Seconds (median) of one request with `size` bytes in and as many out."""
    host, _, path = url.removeprefix("http://").partition("/")
    head = {
        "inputs": [
            {"name": name, "datatype": "FP32", "shape": [1, size // 4], "parameters": {"binary_data_size": size}}
        ],
        "parameters": {"binary_data_output": True},
    }
    text = json.dumps(head).encode()
    body = text + bytes(size)
    headers = {"Authorization": f"Bearer {key}", "Inference-Header-Content-Length": str(len(text))}
    connection = http.client.HTTPConnection(host, timeout=60)
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        connection.request("POST", "/" + path, body, headers)
        answer = connection.getresponse()
        found = answer.read()
        taken.append(time.perf_counter() - began)
        assert answer.status == 200, found[:300]
        assert len(found) > size
    connection.close()
    return statistics.median(taken)


def tensors(report: Any, url: str, key: str, name: str) -> None:
    """Rows of the table: what a large tensor takes there and back, beside a memcpy of it."""
    for megabytes in SIZES_MB:
        size = megabytes << 20
        took, copy = tensor_s(url, key, name, size), memcpy_s(size)
        report.row(f"{megabytes} MiB", f"{took * 1e3:.1f}", f"{2 * size / took / 1e6:.0f}", f"{size / copy / 1e6:.0f}",
                   f"{took / (2 * copy):.1f}")  # fmt: skip
