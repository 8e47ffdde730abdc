"""A real `serinus up` in a temporary folder on free ports, and hands to break its parts with."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault

import httpx
import psutil

from inference.protocol import compiled
from serinus.commands.traffic import wait_ready
from serinus.control import Control
from serinus.uploads import send

REPO = Path(__file__).resolve().parents[2]
PASSWORD = "correct horse battery"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: str, true: Callable[[], Any], timeout_s: float = 30.0, every_s: float = 0.05) -> Any:
    """Polls until `true()` is truthy and returns it; fails the test naming `what`."""
    end = time.monotonic() + timeout_s
    while True:
        found = true()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(every_s)


class House:
    """One running platform. Everything it starts dies with it. python: how its interpreter is called."""

    def __init__(self, folder: Path, *, python: Sequence[str] = (sys.executable,), **extra: str) -> None:
        self.python = list(python)
        self.folder = folder
        self.data_dir = folder / "data"
        self.console_port, self.http_port, self.grpc_port = free_port(), free_port(), free_port()
        self.console_url = f"http://127.0.0.1:{self.console_port}"
        self.gateway_url = f"http://127.0.0.1:{self.http_port}"
        clean = {
            k: v for k, v in os.environ.items() if not k.startswith(("SERINUS_", "DATABASE_", "REDIS_", "DJANGO_"))
        }
        self.environment = clean | {
            "PYTHONPATH": os.pathsep.join((str(REPO), str(REPO / "platform"))),
            "SERINUS_DATA_DIR": str(self.data_dir),
            "SERINUS_CONSOLE_PORT": str(self.console_port),
            "SERINUS_HTTP_PORT": str(self.http_port),
            "SERINUS_GRPC_PORT": str(self.grpc_port),
            "SERINUS_ADMIN_PASSWORD": PASSWORD,
            "SERINUS_HOST_NAME": "testhost",
            "SERINUS_LONE_ADMIN_APPROVES": "1",
            "SERINUS_VALIDATION_TIMEOUT_S": "45",
            "SERINUS_WEBHOOKS_ALLOW_PRIVATE": "1",
            "HOME": str(folder),
            # What this machine has compiled once, no house compiles again.
            compiled.VARIABLE: str(compiled.folder() or ""),
        } | extra  # fmt: skip
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> House:
        """Starts `serinus up` and waits for the line that says that it is up."""
        log = (self.folder / "up.log").open("w")
        command = [*self.python, "-m", "serinus", "up", "--json", *options]
        self.process = subprocess.Popen(
            command,
            env=self.environment,
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        log.close()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError("serinus up ended:\n" + (self.folder / "up.log").read_text()[-3000:])
        self.welcome: dict[str, Any] = json.loads(line)
        assert "error" not in self.welcome, line
        self.credentials: dict[str, Any] = json.loads((self.data_dir / "credentials.json").read_text())
        self.key: str = self.credentials["api_key"]
        self.environment["DATABASE_URL"] = self.services["DATABASE_URL"]
        self.environment["REDIS_URL"] = self.services["REDIS_URL"]
        return self

    def stop(self) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    @property
    def services(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.data_dir / "run" / "environment.json").read_text())
        return found

    @property
    def runtime_dir(self) -> Path:
        return Path(self.services["SERINUS_RUNTIME_DIR"])

    # --- the control API -----------------------------------------------------------------------------------------
    def api(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.request(method, self.console_url + path, json=body, headers=headers, timeout=30)

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.api(method, path, body)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else {}

    def cli(self, *words: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs the real command line against this house."""
        command = [sys.executable, "-m", "serinus", *words]
        done = subprocess.run(
            command, env=self.environment, cwd=REPO, capture_output=True, text=True, timeout=timeout, check=False
        )
        if check:
            assert done.returncode == 0, f"{words}: {done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        return done

    @property
    def control(self) -> Control:
        return Control(url=self.console_url, key=self.key)

    def upload(self, name: str, path: Path, **settings: Any) -> dict[str, Any]:
        """Sends a file or folder as the command line does; the version when validation has ended."""
        control = self.control
        made = send(control, name, path, settings=settings, alias="", screen=None)
        found: dict[str, Any] = control.wait_version(name, made["number"], lambda _: None, 120)
        return found

    def deploy(
        self, name: str, number: int, *, endpoint: str = "", replicas: int = 1, device: str = "any"
    ) -> dict[str, Any]:
        body = {"name": endpoint or name, "model": name, "version": number, "replicas": replicas, "device": device}
        self.ok("POST", "/api/endpoints/", body)
        found: dict[str, Any] = wait_ready(self.control, endpoint or name, number, 60)
        return found

    def scale(self, name: str, number: int, replicas: int) -> None:
        self.ok("POST", "/api/deployments/", {"model": name, "version": number, "replicas": replicas})

    def split(self, endpoint: str, **shares_bp: int) -> None:
        """split("digits", v1=9000, v2=1000)"""
        weights = {name[1:]: share for name, share in shares_bp.items()}
        self.ok("PUT", f"/api/endpoints/{endpoint}/weights/", {"weights": weights})

    # --- the data plane ------------------------------------------------------------------------------------------
    def infer(self, endpoint: str, body: Any, *, key: str | None = None, **headers: str) -> httpx.Response:
        all_headers = {"Authorization": f"Bearer {key or self.key}", **headers}
        url = f"{self.gateway_url}/v2/models/{endpoint}/infer"
        return httpx.post(url, json=body, headers=all_headers, timeout=60)

    def serves(self, endpoint: str, body: Any, timeout_s: float = 30) -> None:
        """Waits until the endpoint answers 200: the table reaches gateways a moment after the API says ready."""
        end = time.monotonic() + timeout_s
        while (answer := self.infer(endpoint, body)).status_code != 200:
            assert answer.status_code in {404, 503}, answer.text
            assert time.monotonic() < end, answer.text
            time.sleep(0.1)

    # --- parts ---------------------------------------------------------------------------------------------------
    def remote(self) -> Any:
        from xmlrpc.client import ServerProxy

        from supervisor.xmlrpc import SupervisorTransport

        transport = SupervisorTransport(None, None, serverurl=f"unix://{self.runtime_dir / 'up.sock'}")
        return ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def pid(self, program: str) -> int:
        return int(self.remote().getProcessInfo(program)["pid"])

    def kill(self, program: str, number: int = signal.SIGKILL) -> int:
        """Sends a signal to a supervised program of this house; it is restarted by its supervisor."""
        pid = self.pid(program)
        os.kill(pid, number)
        return pid

    def down(self, *programs: str, number: int = signal.SIGKILL) -> None:
        """Sends a signal to programs and keeps them down (SIGKILL, so that nothing is tidied up)."""
        for program in programs:
            with contextlib.suppress(ProcessLookupError):
                self.kill(program, number)
            until(f"{program} stays down", lambda program=program: self._stopped(program), 20)

    def _stopped(self, program: str) -> bool:
        """Asks for a stop again until it is one: just after a kill the program counts as not running, then restarts."""
        with contextlib.suppress(Fault):
            self.remote().stopProcess(program, True)
        return bool(self.remote().getProcessInfo(program)["statename"] == "STOPPED")

    def up_again(self, *programs: str) -> None:
        remote = self.remote()
        for program in programs:
            if remote.getProcessInfo(program)["statename"] not in {"RUNNING", "STARTING"}:
                remote.startProcess(program, False)

    def seen(self) -> list[Any]:
        """Replicas as the host's supervisor itself sees them (protocol.supervision.ReplicaSeen), without any row."""
        from inference.host.client import SupervisorClient

        client = SupervisorClient(self.runtime_dir / "supervisor.sock")
        try:
            return list(client.look().replicas)
        finally:
            client.close()

    def replicas(self) -> list[dict[str, Any]]:
        """Rows of the control API, each with the `pid` that the supervisor tells."""
        rows: list[dict[str, Any]] = self.ok("GET", "/api/replicas/?page_size=200")["results"]
        pids = {(seen.id, seen.generation): seen.pid for seen in self.seen()}
        return [row | {"pid": pids.get((row["id"], row["generation"]), 0)} for row in rows]

    def ready_replicas(self, model: str) -> list[dict[str, Any]]:
        return [row for row in self.replicas() if row["model"] == model and row["phase"] == "ready"]

    def shell(self, code: str) -> str:
        """Runs Python inside Django of this house."""
        done = subprocess.run(
            [sys.executable, "-m", "django", "shell", "-v", "0", "-c", code],
            env=self.environment | {**self.services, "DJANGO_SETTINGS_MODULE": "config.settings"},
            cwd=REPO, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-1500:]
        return done.stdout


@contextlib.contextmanager
def running_house(folder: Path, *options: str, **extra: str) -> Iterator[House]:
    house = House(folder, **extra)
    try:
        yield house.start(*options)
    finally:
        house.stop()


def remains(data_dir: Path) -> list[str]:
    """Processes, zombies apart, that belong to the platform in this folder: by command line, environment or place."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            said = " ".join(process.cmdline()) + " ".join(process.environ().values())
            if process.status() != psutil.STATUS_ZOMBIE and (str(data_dir) in said or process.cwd() == str(data_dir)):
                found.append(f"{process.pid} {' '.join(process.cmdline())[:100]}")
    return found
