"""Load generator: keep-alive HTTP/1.1 over asyncio, uvloop and httptools, in one process.

Closed loop: each of `connections` sends its next request when its answer has come. As a program:
`python loadgen.py URL --connections 32 --seconds 3 --key KEY --body FILE` prints one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httptools
import uvloop


@dataclass
class Result:
    """What a run measured. cpu_ms_per_request: CPU time of the watched processes per request."""

    connections: int
    requests_per_s: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    cpu_ms_per_request: float = 0.0
    server_cores: float = 0.0
    client_cores: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)


def cpu_s(pids: list[int]) -> float:
    """CPU seconds that these processes have used so far."""
    total = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class Run:
    def __init__(self, url: str, requests: list[bytes]) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.requests = requests
        self.sent = 0
        self.measuring = self.stopping = False
        self.latencies: list[float] = []
        self.errors: dict[str, int] = {}

    def next(self) -> bytes:
        self.sent += 1
        return self.requests[self.sent % len(self.requests)]

    def error(self, what: str) -> None:
        self.errors[what] = self.errors.get(what, 0) + 1


class Connection(asyncio.Protocol):
    def __init__(self, run: Run) -> None:
        self.run = run
        self.busy = False

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.parser = httptools.HttpResponseParser(self)
        self.send()

    def send(self) -> None:
        self.busy = True
        self.began = time.perf_counter()
        self.transport.write(self.run.next())

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.busy = False
        if self.run.measuring:
            # A refusal is no answer: whoever refuses at once would be the fastest of all.
            if self.parser.get_status_code() == 200:
                self.run.latencies.append(time.perf_counter() - self.began)
            else:
                self.run.error(str(self.parser.get_status_code()))
        if self.run.stopping:
            return
        if self.parser.should_keep_alive():
            # not from inside the parser's own callback
            asyncio.get_running_loop().call_soon(self.send)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.run.stopping:
            return
        if self.busy:
            self.run.error("lost")
        asyncio.get_running_loop().create_task(connect(self.run))


async def connect(run: Run) -> None:
    for _ in range(100):
        try:
            await asyncio.get_running_loop().create_connection(lambda: Connection(run), run.host, run.port)
            return
        except OSError:
            run.error("refused")
            await asyncio.sleep(0.05)


def frame(url: str, body: bytes, headers: dict[str, str]) -> bytes:
    """One POST as bytes."""
    parts = urlsplit(url)
    lines = [f"POST {parts.path or '/'} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def load(url: str, requests: list[bytes], connections: int, seconds: float, pids: list[int]) -> Result:
    """Runs `connections` for `seconds` after a warm-up of half a second."""
    run = Run(url, requests)
    await asyncio.gather(*(connect(run) for _ in range(connections)))
    await asyncio.sleep(0.5)
    server, client, began = cpu_s(pids), time.process_time(), time.perf_counter()
    run.measuring = True
    await asyncio.sleep(seconds)
    run.measuring = False
    took = time.perf_counter() - began
    server, client = cpu_s(pids) - server, time.process_time() - client
    run.stopping = True
    found = sorted(run.latencies)
    count = max(1, len(found))

    def quantile(q: float) -> float:
        return round(1e3 * found[min(len(found) - 1, int(q * len(found)))], 3) if found else 0.0

    return Result(
        connections,
        round(len(found) / took, 1),
        quantile(0.5),
        quantile(0.99),
        round(1e3 * server / count, 4),
        round(server / took, 2),
        round(client / took, 2),
        run.errors,
    )


def measure(url: str, requests: list[bytes], connections: int, seconds: float, pids: list[int]) -> Result:
    return uvloop.run(load(url, requests, connections, seconds, pids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--key", default="")
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--pid", type=int, action="append", default=[])
    given = parser.parse_args()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {given.key}"} if given.key else {})
    requests = [frame(given.url, given.body.read_bytes(), headers)]
    print(json.dumps(asdict(measure(given.url, requests, given.connections, given.seconds, given.pid))))


if __name__ == "__main__":
    main()
