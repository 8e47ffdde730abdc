"""The sandbox for real: a child enters it and tries what a hostile model would try."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from inference.replica import landlock

pytestmark = pytest.mark.skipif(landlock.abi() < 1, reason="this kernel has no Landlock")

ENTER = """
import json, os, socket, sys
from pathlib import Path
from inference.replica.sandbox import Limits, Plan, enter
scratch, artifact, secret, tcp_port, unix_path, keep = json.loads(sys.argv[1])
plan = Plan(Path(scratch), (Path(artifact),), (keep,), limits=Limits(memory_bytes=1 << 30, file_bytes=1 << 20))
"""
TRY = """
import ctypes, signal, socket, subprocess
walls = enter(plan)
found = {}
def attempt(name, act):
    try:
        act()
        found[name] = "done"
    except BaseException as error:
        found[name] = type(error).__name__
libc = ctypes.CDLL(None, use_errno=True)
def call(function, *arguments):
    if getattr(libc, function)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), function)
def socket_of(family, address):
    with socket.socket(family) as made:
        made.connect(address)
def send_datagram():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.sendto(b"x", unix_path)
def take_over():
    kept = socket.socket(fileno=keep)
    kept.connect(unix_path)
def kernel_call(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), str(number))
attempt("read artifact", lambda: Path(artifact, "weights").read_bytes())
attempt("write scratch", lambda: Path(scratch, "note").write_text("x"))
attempt("write scratch beyond the limit", lambda: Path(scratch, "big").write_bytes(bytes(2 << 20)))
attempt("rename in scratch", lambda: Path(scratch, "note").rename(Path(scratch, "note2")))
attempt("write artifact", lambda: Path(artifact, "weights").write_text("changed"))
attempt("delete artifact", lambda: Path(artifact, "weights").unlink())
attempt("read secret", lambda: Path(secret).read_text())
attempt("list secrets", lambda: list(Path(secret).parent.iterdir()))
attempt("chmod secret", lambda: Path(secret).chmod(0o777))
attempt("chown secret", lambda: os.chown(secret, os.getuid(), os.getgid()))
attempt("link secret", lambda: os.link(secret, Path(scratch, "linked")))
attempt("symlink secret", lambda: (Path(scratch, "soft").symlink_to(secret), Path(scratch, "soft").read_text()))
attempt("read passwd", lambda: Path("/etc/passwd").read_text())
attempt("write tmp", lambda: Path("/tmp/serinus-escaped").write_text("x"))
attempt("environment of the parent", lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes())
attempt("tcp connect", lambda: socket_of(socket.AF_INET, ("127.0.0.1", tcp_port)))
attempt("unix connect", lambda: socket_of(socket.AF_UNIX, unix_path))
attempt("abstract connect", lambda: socket_of(socket.AF_UNIX, "\\0serinus-test"))
attempt("connect with a socket it has", take_over)
attempt("datagram by path", send_datagram)
attempt("kill parent", lambda: os.kill(os.getppid(), 0))
attempt("kill all", lambda: os.kill(-1, 0))
attempt("signal by pidfd", lambda: signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0))
attempt("limit parent", lambda: __import__("resource").prlimit(os.getppid(), 7, (10, 10)))
attempt("ptrace parent", lambda: call("ptrace", 16, os.getppid(), 0, 0))
attempt("fork", os.fork)
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
attempt("spawn", lambda: subprocess.run(["/bin/true"], check=True))
attempt("unshare", lambda: call("unshare", 0x10000000))
attempt("mount", lambda: call("mount", b"none", scratch.encode(), b"tmpfs", 0, None))
attempt("io_uring", lambda: kernel_call(425, 1, None))
attempt("chroot", lambda: os.chroot(scratch))
attempt("memory", lambda: bytearray(2 << 30))
attempt("socketpair", lambda: [end.send(b"x") for end in socket.socketpair()])
attempt("kill itself with 0", lambda: os.kill(os.getpid(), 0))
import threading
attempt("thread", lambda: threading.Thread(target=int).start())
print(json.dumps({"found": found, "walls": walls.describe(), "environment": dict(os.environ),
    "environ_bytes": Path("/proc/self/environ").read_bytes().strip(b"\\0").decode(),
    "fds": sorted(int(name) for name in os.listdir("/proc/self/fd")), "uid": os.getuid()}))
"""
COMPUTE = """
walls = enter(plan)
import torch, jax, jax.numpy as jnp
linear = torch.nn.Linear(8, 8)
linear(torch.ones(4, 8)).sum().backward()
jitted = float(jax.jit(lambda x: (x @ x).sum())(jnp.ones((8, 8))))
print(json.dumps({"torch": float(torch.ones(4, 8).sum()), "jax": jitted}))
"""


class Outside:
    """What lies around the sandbox: a secret, a TCP listener, unix sockets, an artifact."""

    def __init__(self, root: Path) -> None:
        self.scratch, self.artifact, secrets = (root / name for name in ("scratch", "artifact", "secrets"))
        for folder in (self.scratch, self.artifact, secrets):
            folder.mkdir()
        (self.artifact / "weights").write_text("weights")
        self.secret = secrets / "secret_key"
        self.secret.write_text("the secret")
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(root / "s"))
        self.unix.listen()
        self.kept, self.other = socket.socketpair()

    def run(self, body: str, **env: str) -> subprocess.CompletedProcess[str]:
        kept = self.kept.fileno()
        arguments = [str(self.scratch), str(self.artifact), str(self.secret), self.tcp.getsockname()[1]]
        given = json.dumps([*arguments, self.unix.getsockname(), kept])
        environment = {"PYTHONPATH": ".", "DATABASE_URL": "postgresql://secret", "OMP_WAIT_POLICY": "PASSIVE", **env}
        return subprocess.run(
            [sys.executable, "-c", ENTER + body, given],
            env=environment, pass_fds=(kept, self.tcp.fileno()), capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip

    def close(self) -> None:
        for held in (self.tcp, self.unix, self.kept, self.other):
            held.close()


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    outside = Outside(tmp_path_factory.mktemp("outside"))
    done = outside.run(TRY)
    outside.close()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


ALLOWED = {
    "read artifact", "write scratch", "rename in scratch", "socketpair", "kill itself with 0", "thread",
}  # fmt: skip
OTHERWISE = {"link secret": "OSError", "write scratch beyond the limit": "OSError", "memory": "MemoryError"}


def test_everything_a_hostile_model_tries_is_refused_and_what_it_needs_is_not(seen):
    found = seen["found"]
    wanted = {name: "done" if name in ALLOWED else OTHERWISE.get(name, "PermissionError") for name in found}
    assert len(found) > 30
    assert found == wanted


def test_the_environment_holds_no_secret_not_even_in_the_bytes_the_process_began_with(seen):
    assert "DATABASE_URL" not in seen["environment"]
    assert seen["environment"]["OMP_WAIT_POLICY"] == "PASSIVE"
    assert seen["environ_bytes"] == ""


def test_only_its_own_descriptors_are_open(seen):
    # 0 to 2, the kept one, and the one that lists the folder.
    assert len(seen["fds"]) == 5


def test_the_walls_describe_themselves(seen):
    walls = seen["walls"]
    assert walls["landlock_abi"] >= 1
    assert walls["seccomp"] is True
    assert walls["no_new_privileges"] is True


def test_torch_and_jax_compute_inside(tmp_path):
    outside = Outside(tmp_path)
    done = outside.run(COMPUTE)
    outside.close()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"torch": 32.0, "jax": 512.0}


def test_a_second_thread_before_entering_is_refused(tmp_path):
    outside = Outside(tmp_path)
    body = "import threading, time; threading.Thread(target=time.sleep, args=(1,)).start(); enter(plan)"
    done = outside.run(body)
    outside.close()
    assert done.returncode != 0
    assert "before a second thread" in done.stderr


def test_switched_off_it_still_scrubs_the_environment(tmp_path):
    outside = Outside(tmp_path)
    body = "walls = enter(plan); print(json.dumps([walls.seccomp, Path(secret).read_text(), 'DATABASE_URL' in os.environ]))"
    done = outside.run(body, SERINUS_SANDBOX="off")
    outside.close()
    assert json.loads(done.stdout) == [False, "the secret", False]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_it_needs_no_root(tmp_path):
    body = (
        "from inference.replica.sandbox import rules; rules(plan); __import__('codecs').lookup('ascii')  # where only root may read\n"
        "import ctypes; dumpable = lambda: ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); dumpable()\n"
        "walls = enter(plan); print(json.dumps([walls.network_namespace, walls.landlock_abi > 0, os.getuid()]))"
    )
    outside = Outside(tmp_path)
    os.chown(outside.scratch, 65534, 65534)
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    done = outside.run(body)
    outside.close()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[1:] == [True, 65534]
