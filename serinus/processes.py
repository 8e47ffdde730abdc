"""The processes of one machine, and the process supervisor (supervisord) that restarts them.

Which programs there are and how they are started is a pure table; `Supervisord` runs it. Every program asks the
kernel to be told of its parent's death, so a killed supervisord leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from serinus.paths import UpConfig, write_private

CHILD = Path(__file__).with_name("child.py")
SERVICE, HOST, DOOR = 1, 2, 3  # stages: a later one needs the earlier ones, and is stopped before them
GONE = {0, 100, 200, 1000}  # supervisord's states without a process
YIELDS = 5  # niceness: a third of the share that a process of the data plane gets where they meet on one core
SECRETS = "DATABASE_URL,REDIS_URL,SERINUS_ADMIN_PASSWORD"


class StartError(RuntimeError):
    """A part did not come up; the message names it and its log."""


@dataclass(frozen=True, slots=True)
class Program:
    """One supervised process. `unset` names variables that it must not see; `stage` orders the stop.

    yields: it plans, and gives way to who serves: its periodic tasks come in bursts of 50 ms, which every request that
    arrives meanwhile would wait for.
    """

    name: str
    command: Sequence[str]
    stop_signal: str = "TERM"
    stop_wait_s: int = 15
    unset: str = ""
    dies_with_parent: bool = True
    yields: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    stage: int = DOOR


def _python(*words: str) -> list[str]:
    return [sys.executable, *words]


def _celery(*words: str) -> list[str]:
    return _python("-m", "celery", "-A", "config", *words)


def _worker(node: str, queue: str, threads: int) -> list[str]:
    return _celery(
        "worker", "-P", "threads", "-c", str(threads), "-Q", queue, "-n", node,
        "--without-gossip", "--without-mingle", "-l", "WARNING",
    )  # fmt: skip


def host_programs(config: UpConfig, drain_s: int = 20) -> list[Program]:
    """What every machine with replicas runs: the supervisor of the replicas, and the Celery host agent."""
    name = config.host_name
    return [
        Program("host", _python("-m", "inference", "supervisor"), stop_wait_s=drain_s + 10, unset=SECRETS, stage=HOST),
        Program(
            "agent", _worker(f"agent@{name}", f"host.{name}", 2), yields=True, environment={"SERINUS_ROLE": "agent"}
        ),
    ]


def gateway_program(drain_s: int = 30) -> Program:
    return Program(
        "gateway",
        _python("-m", "inference", "gateway"),
        stop_wait_s=drain_s + 5,
        unset="DATABASE_URL,SERINUS_ADMIN_PASSWORD",
    )


def repository_programs(config: UpConfig) -> list[Program]:
    """What follows the folder of --model-repository; nothing without one."""
    if config.model_repository is None:
        return []
    return [Program("repository", _python("-m", "serinus.repository"), unset=SECRETS, yields=True)]


def control_programs(config: UpConfig) -> list[Program]:
    """The control plane: console, control worker, beat."""
    return [
        Program("console", _python("-m", "config.server"), yields=True),
        Program("control", _worker(f"control@{config.host_name}", "control", 4), yields=True),
        Program("jobs", _worker(f"jobs@{config.host_name}", "jobs", 4), yields=True),
        Program(
            "beat", _celery("beat", "-s", str(config.run_dir / "beat"), "--pidfile=", "-l", "WARNING"), yields=True
        ),
    ]


def _quoted(word: str) -> str:
    return "'" + word.replace("%", "%%").replace("'", "'\\''") + "'"


def program_section(program: Program, log_dir: Path) -> str:
    """The program's part of supervisord's configuration."""
    wrapper = [sys.executable, "-S", str(CHILD), f"SIG{program.stop_signal}", program.unset or "-"]
    polite = ["nice", "-n", str(YIELDS)] if program.yields else []
    command = [*polite, *(wrapper if program.dies_with_parent else []), *program.command]
    environment = ",".join(f'{name}="{value}"' for name, value in program.environment.items())
    lines = [
        f"[program:{program.name}]",
        f"command={' '.join(_quoted(word) for word in command)}",
        "autostart=false",
        f"priority={program.stage}",
        "autorestart=true",
        "startsecs=1",
        "startretries=1000000",
        f"stopsignal={program.stop_signal}",
        f"stopwaitsecs={program.stop_wait_s}",
        "redirect_stderr=true",
        f"stdout_logfile={log_dir / (program.name + '.log')}",
        "stdout_logfile_maxbytes=20MB",
        "stdout_logfile_backups=2",
    ]
    if environment:
        lines.append(f"environment={environment}")
    return "\n".join(lines) + "\n"


def configuration(programs: Sequence[Program], config: UpConfig, *, as_root: bool) -> str:
    """Supervisord's whole configuration; it listens on a 0700 unix socket only."""
    socket = control_socket(config)
    head = (
        f"[supervisord]\nnodaemon=true\nlogfile={config.log_dir / 'supervisord.log'}\nlogfile_maxbytes=5MB\n"
        f"pidfile={config.run_dir / 'supervisord.pid'}\nchildlogdir={config.log_dir}\nsilent=true\n"
        + ("user=root\n" if as_root else "")
        + f"[unix_http_server]\nfile={socket}\nchmod=0700\n"
        + "[rpcinterface:supervisor]\n"
        + "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
    )
    return head + "".join(program_section(program, config.log_dir) for program in programs)


def control_socket(config: UpConfig) -> Path:
    return config.runtime_dir / "up.sock"


def connect(config: UpConfig) -> Any:
    """Supervisord's remote interface (start, stop, state of programs)."""
    from supervisor.xmlrpc import SupervisorTransport

    transport = SupervisorTransport(None, None, serverurl=f"unix://{control_socket(config)}")
    return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor


class Supervisord:
    """A running supervisord, child of this process."""

    def __init__(self, config: UpConfig, programs: Sequence[Program], environment: dict[str, str]) -> None:
        self.config = config
        self.programs = list(programs)
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts supervisord with no program running yet. Raises StartError."""
        import os

        file = self.config.run_dir / "supervisord.conf"
        write_private(file, configuration(self.programs, self.config, as_root=os.getuid() == 0))
        control_socket(self.config).unlink(missing_ok=True)
        command = [
            sys.executable, "-S", str(CHILD), "SIGTERM", "-",
            sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-n", "-c", str(file),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        assert self._process.stdout is not None
        words = (self._process.stdout, self.config.log_dir / "supervisord.out")
        threading.Thread(target=_keep, args=words, daemon=True).start()
        wait_for("supervisord", control_socket(self.config).exists, self, timeout_s=15)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def run(self, *names: str) -> None:
        """Starts programs without waiting for them."""
        remote = connect(self.config)
        for name in names:
            remote.startProcess(name, False)

    def wait(self) -> int:
        """Blocks until supervisord ends."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """Stops every program in order, front doors first and services last, then supervisord."""
        if not self.alive or self._process is None:
            return
        for stage in (DOOR, HOST, SERVICE):
            with contextlib.suppress(OSError):
                self._stop([program for program in self.programs if program.stage == stage])
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _stop(self, programs: Sequence[Program]) -> None:
        """Asks all of them to stop, and waits until none is left or supervisord should long have killed it."""
        remote = connect(self.config)
        for program in programs:
            with contextlib.suppress(xmlrpc.client.Fault):  # it does not run
                remote.stopProcess(program.name, False)
        end = time.monotonic() + max((program.stop_wait_s for program in programs), default=0) + 5
        while time.monotonic() < end:
            if all(remote.getProcessInfo(program.name)["state"] in GONE for program in programs):
                return
            time.sleep(0.05)


def _keep(said: IO[bytes], file: Path) -> None:
    """Writes down what supervisord says until it ends. It says that it could not write a log when a disk is full, and
    would end if these very words could not be written either.
    """
    for line in said:
        with contextlib.suppress(OSError), file.open("ab") as out:
            out.write(line)


def wait_for(what: str, ready: Callable[[], bool], supervisor: Supervisord, *, timeout_s: float) -> None:
    """Polls `ready`; raises StartError naming `what` and the end of its log when it stays false."""
    end = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > end or not supervisor.alive:
            raise StartError(f"{what} did not come up within {timeout_s:.0f} s. {_log_tail(supervisor.config, what)}")
        time.sleep(0.05)


def _log_tail(config: UpConfig, name: str) -> str:
    for file in (config.log_dir / f"{name}.log", config.log_dir / "supervisord.out"):
        if file.exists() and file.stat().st_size:
            return f"End of {file}:\n" + "\n".join(file.read_text(errors="replace").splitlines()[-8:])
    return f"Its log would be in {config.log_dir}."
