"""Peers in environments of their own under `.bench/`, and their servers as processes that can be stopped while others run.

Each environment holds one peer at a fixed version; torch, transformers and tokenizers come from ours, so that everybody
computes with the same library.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import site
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from bench_predict import pin
from loadgen import frame

from tests.benchmarks.peers import workloads
from tests.support.house import free_port

ROOT = Path(__file__).resolve().parents[3]
SERVERS = Path(__file__).parent / "servers"
BENCH = ROOT / ".bench"
START_S = 240.0


@dataclass(frozen=True)
class Peer:
    """command(bin, port, folder) starts its server; body makes its payloads."""

    name: str
    requirement: str
    command: Callable[[Path, int, Path], list[str]]
    path: str = "/predict"
    body: workloads.Body = workloads.bare
    is_default: bool = True


def _mlserver(bin_: Path, port: int, folder: Path) -> list[str]:
    batch, window_s = (64, 0.002) if os.environ.get("PEER_WORKLOAD") == "w1" else (32, 0.005)
    ports = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    server = {**ports, "parallel_workers": 0, "debug": False, "metrics_endpoint": None, "logging_settings": None}
    model = {"name": "predict", "implementation": "mlserver_runtime.Predict", "max_batch_size": batch}
    (folder / "settings.json").write_text(json.dumps(server))
    (folder / "model-settings.json").write_text(json.dumps(model | {"max_batch_time": window_s}))
    return [str(bin_ / "mlserver"), "start", str(folder)]


def _script(name: str, *before: str) -> Callable[[Path, int, Path], list[str]]:
    return lambda bin_, port, _: [str(bin_ / "python"), str(SERVERS / name), *before, str(port)]


PEERS = [
    Peer("mosec", "mosec==0.9.8", _script("mosec_server.py", "--address", "127.0.0.1", "--port"), "/inference"),
    Peer("litserve", "litserve==0.2.19", _script("litserve_server.py")),
    Peer(
        "bentoml", "bentoml==1.4.39",
        lambda bin_, port, _: [
            str(bin_ / "bentoml"), "serve", "bentoml_server:Predict", "--host", "127.0.0.1", "-p", str(port),
        ],
        body=workloads.listed,
    ),
    Peer("mlserver", "mlserver==1.7.1", _mlserver, "/v2/models/predict/infer", workloads.v2(flat=True)),
    Peer("ray", "ray[serve]==2.60.0", _script("ray_server.py"), is_default=False),
    Peer(
        "pytriton", "nvidia-pytriton==0.7.0", _script("pytriton_server.py"), "/v2/models/predict/infer",
        workloads.v2(), is_default=False,
    ),
]  # fmt: skip


def installed(peer: Peer) -> Path:
    """The environment's folder of programs, made when it is not there."""
    folder = BENCH / peer.name
    done = folder / f".{peer.requirement}"
    if not done.exists():
        print(f"installing {peer.requirement} into .bench/{peer.name}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, peer.requirement], check=True)
        place = next(folder.glob("lib/python*/site-packages"))
        # at the end of the path: what the peer brought along goes before ours
        (place / "ours.pth").write_text("\n".join(site.getsitepackages()) + "\n")
        done.touch()
    return folder / "bin"


@dataclass
class Contestant:
    """A server that answers. pids: of its processes, at this moment."""

    name: str
    url: str
    requests: list[bytes]
    pids: Callable[[], list[int]]
    headers: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def frames(self) -> list[bytes]:
        """Its payloads as requests of HTTP."""
        headers = {"Content-Type": "application/json", **self.headers}
        return [frame(self.url, body, headers) for body in self.requests]

    @contextlib.contextmanager
    def measured(self, mode: str) -> Iterator[list[int]]:
        """Its processes, awake; they and this one are on the cores that the mode says."""
        cores, own = os.cpu_count() or 1, os.sched_getaffinity(0)
        self.wake()
        pids = self.pids()
        pin(pids, "0" if mode == "pinned" else f"0-{cores - 1}")
        if mode == "pinned" and cores > 1:
            os.sched_setaffinity(0, {1})
        try:
            yield pids
        finally:
            os.sched_setaffinity(0, own)
            self.rest()

    def rest(self) -> None:
        """Stops it in its tracks, so that it takes nothing from whoever is measured."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def end(self) -> None:
        """Ends every process that its server started."""
        if self.process is None:
            return
        pids = self.pids()
        self.wake()
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(15)


def tree(pid: int) -> list[int]:
    """The process, its descendants, and who else is in its session."""
    found = {pid}
    with contextlib.suppress(psutil.NoSuchProcess):
        found |= {child.pid for child in psutil.Process(pid).children(recursive=True)}
    for other in psutil.pids():
        with contextlib.suppress(OSError):
            if os.getsid(other) == pid:
                found.add(other)
    return [one for one in found if psutil.pid_exists(one)]


def started(peer: Peer, workload: str, folder: Path, minilm: Path) -> Contestant:
    """The peer's server, once it answers. Raises RuntimeError with the end of its log."""
    bin_, port = installed(peer), free_port()
    place = folder / f"{peer.name}-{workload}"
    place.mkdir()
    os.environ["PEER_WORKLOAD"] = workload
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SERINUS_")},
        "PATH": f"{bin_}:{os.environ['PATH']}", "PYTHONPATH": str(SERVERS), "PEER_MINILM": str(minilm),
        "HF_HUB_OFFLINE": "1", "BENTOML_HOME": str(place), "BENTOML_DO_NOT_TRACK": "True", "HOME": str(place),
    }  # fmt: skip
    log = (place / "log").open("wb")
    process = subprocess.Popen(
        peer.command(bin_, port, place), cwd=SERVERS, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    log.close()
    url = f"http://127.0.0.1:{port}{peer.path}"
    found = Contestant(
        peer.name, url, workloads.encoded(peer.body, workload), lambda: tree(process.pid), process=process
    )
    end = time.monotonic() + START_S
    while not _answers(found):
        if process.poll() is not None or time.monotonic() > end:
            found.end()
            raise RuntimeError(f"{peer.name} did not start:\n{(place / 'log').read_text(errors='replace')[-1500:]}")
        time.sleep(0.5)
    return found


def _answers(one: Contestant) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return first_answer(one) is not None
    return False


def first_answer(one: Contestant) -> Any:
    """What it says to the first payload; None when that is no answer."""
    headers = {"Content-Type": "application/json", **one.headers}
    answer = httpx.post(one.url, content=one.requests[0], headers=headers, timeout=60)
    return answer.json() if answer.status_code == 200 else None
