"""The walls around a model: a process that has entered holds no secret and reaches nothing but its own folder.

The law: whatever a person uploaded is only ever read, loaded and run behind these walls. Layers, each of which is
enough for most attacks: no secrets (environment, descriptors), own network and IPC name space, resource limits, no
privileges, Landlock (files, TCP, signals), seccomp (unix sockets, other processes, the kernel).
"""

from __future__ import annotations

import ctypes
import glob
import math
import os
import resource
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

import inference
from inference.errors import ServerError
from inference.protocol import compiled
from inference.replica import landlock, seccomp
from inference.replica.landlock import DEVICE, READ, WRITE, Rule

SYSTEM_READ = (
    "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/usr/local/cuda", "/etc/ld.so.cache",
    "/etc/localtime", "/usr/share/zoneinfo", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version",
    "/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/random", "/proc/filesystems", "/sys/devices/system",
    "/sys/fs/cgroup", "/sys/kernel/mm/transparent_hugepage", "/dev/urandom", "/dev/random", "/dev/zero",
)  # fmt: skip
CUDA_READ = (
    "/proc/driver/nvidia", "/sys/module/nvidia", "/sys/bus/pci", "/sys/devices", "/proc/devices", "/usr/share",
    "/usr/local/nvidia",
)  # fmt: skip
CUDA_DEVICES = ("/dev/nvidia*", "/dev/nvidia-caps/*", "/dev/dri/*")
TPU_READ = ("/sys/bus/pci", "/sys/devices", "/sys/class", "/sys/kernel/iommu_groups")
TPU_DEVICES = ("/dev/accel*", "/dev/vfio/*")
KEPT_VARIABLES = (
    "LD_LIBRARY_PATH", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES",
    "JAX_PLATFORMS", "XLA_PYTHON_CLIENT_PREALLOCATE", "ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED",
    "TF_CPP_MIN_LOG_LEVEL", "TRANSFORMERS_VERBOSITY", "PYTHONUNBUFFERED",
)  # fmt: skip
KEPT_PREFIXES = ("TPU_", "LIBTPU_")
VIRTUAL_SLACK_BYTES = 4 << 30
_NEWUSER, _NEWNET, _NEWIPC = 0x10000000, 0x40000000, 0x08000000
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAP_VERSION_3 = 0x20080522


class SandboxUnavailable(ServerError):
    """This kernel has no Landlock, so uploaded models cannot be run safely here."""

    code: ClassVar[str] = "sandbox_unavailable"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one process. memory_bytes: above what is in use on entering, 0 for none; cpu_s: 0 for none;
    mapped_bytes: files that may be mapped beside that.
    """

    memory_bytes: int = 0
    mapped_bytes: int = 0
    cpu_s: float = 0.0
    file_bytes: int = 256 << 20
    open_files: int = 4096
    threads: int = 512


@dataclass(frozen=True, slots=True)
class Plan:
    """What one child may have. `scratch`, its home, and `also_writable` are its only writable folders (None: it has no
    home); `readable` its artifact's files; `keep_fds` what stays open beside stdin, stdout and stderr.
    """

    scratch: Path | None
    readable: tuple[Path, ...] = ()
    keep_fds: tuple[int, ...] = ()
    device: str = "cpu"
    limits: Limits = field(default_factory=Limits)
    also_writable: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Walls:
    """What stands after entering, for the report. landlock_abi 0 and seccomp False: the sandbox is switched off."""

    landlock_abi: int = 0
    seccomp: bool = False
    network_namespace: bool = False
    no_new_privileges: bool = False
    limits: Limits = field(default_factory=Limits)

    def describe(self) -> dict[str, object]:
        return asdict(self)

    def words(self) -> str:
        """One line for a person who reads the report."""
        if not self.seccomp:
            return "without a sandbox (SERINUS_SANDBOX=off)"
        network = "own network" if self.network_namespace else "no new sockets"
        return f"sandboxed: Landlock {self.landlock_abi}, system call filter, {network}, no privileges"


def is_switched_off(env: Mapping[str, str] = os.environ) -> bool:
    """SERINUS_SANDBOX=off: for kernels without Landlock, where only trusted people upload. `doctor` warns of it."""
    return env.get("SERINUS_SANDBOX", "").lower() == "off"


def require_support(env: Mapping[str, str] = os.environ) -> None:
    """Raises SandboxUnavailable, with the way out, unless the walls can be built here or are switched off."""
    if is_switched_off(env):
        return
    if landlock.abi() < 1:
        raise SandboxUnavailable(
            "this kernel has no Landlock (5.13 or newer, 'landlock' in its lsm= list): uploaded models cannot be run "
            "safely. Where only trusted people upload, SERINUS_SANDBOX=off serves without"
        )
    if not seccomp.is_supported():
        raise SandboxUnavailable("the sandbox's system call filter exists for x86_64 and aarch64 only")


def enter(plan: Plan, env: Mapping[str, str] = os.environ) -> Walls:
    """Closes this process in, for good. It must have a single thread: walls hold for it and what it starts.

    1. Closes stray descriptors. 2. Scrubs the environment. 3. Leaves the network and IPC name spaces. 4. Sets the
    limits. 5. Gives up privileges. 6. Landlock. 7. seccomp. Raises SandboxUnavailable or OSError.
    """
    require_support(env)
    off = is_switched_off(env)
    if not off and len(os.listdir("/proc/self/task")) != 1:  # noqa: PTH208 (names only, before anything is set up)
        raise SandboxUnavailable("the sandbox must be entered before a second thread starts")
    _close_all_but(plan.keep_fds)
    scrub_environment(plan.scratch)
    os.chdir(plan.scratch or "/")
    os.umask(0o077)
    if off:
        return Walls()
    network = _leave_namespaces()
    _set_limits(plan.limits, device=plan.device)
    _give_up_privileges()
    version = landlock.restrict(rules(plan))
    seccomp.install()
    return Walls(version, True, network, True, plan.limits)


def rules(plan: Plan) -> list[Rule]:
    """Landlock's rules for `plan`: interpreter, libraries and artifact to read, one folder to write."""
    readable = [*_interpreter_folders(), *map(Path, SYSTEM_READ), Path("/proc/self"), *plan.readable]
    if kept := compiled.folder():
        readable.append(kept)
    devices: list[str] = ["/dev/null"]
    kind = plan.device.partition(":")[0]
    if kind == "cuda":
        readable += map(Path, CUDA_READ)
        devices += _existing(CUDA_DEVICES)
    if kind == "tpu":
        readable += map(Path, TPU_READ)
        devices += _existing(TPU_DEVICES)
    return [
        *(Rule(path, READ) for path in readable),
        *(Rule(Path(path), DEVICE) for path in devices),
        *(Rule(path, WRITE) for path in (plan.scratch, *plan.also_writable) if path),
    ]


def scrub_environment(home_folder: Path | None) -> None:
    """Replaces the environment by a minimal one, and wipes the old one's bytes: /proc/self/environ shows them else."""
    kept = {
        name: value for name, value in os.environ.items() if name in KEPT_VARIABLES or name.startswith(KEPT_PREFIXES)
    } | {compiled.VARIABLE: str(compiled.folder() or "")}
    os.environ.clear()
    _libc().clearenv()
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        fields = file.read().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
    home = str(home_folder or "/")
    os.environ.update(
        kept
        | {"HOME": home, "TMPDIR": home, "USER": "serinus", "LOGNAME": "serinus", "PATH": "/usr/bin:/bin"}
        | {"LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    )


def _interpreter_folders() -> list[Path]:
    # Never the whole of sys.path: a source tree may hold the data folder with its secrets.
    names = {"stdlib", "platstdlib", "purelib", "platlib"}
    found = {sysconfig.get_paths()[name] for name in names}
    found |= {f"{prefix}/{lib}" for prefix in (sys.prefix, sys.base_prefix) for lib in ("lib", "lib64")}
    found |= set(site.getsitepackages())
    if site.ENABLE_USER_SITE:
        found.add(site.getusersitepackages())
    return [Path(inference.__file__ or "").resolve().parent, *map(Path, sorted(found))]


def _existing(patterns: Iterable[str]) -> list[str]:
    return [path for pattern in patterns for path in glob.glob(pattern)]  # noqa: PTH207


def _close_all_but(keep: Iterable[int]) -> None:
    low = 3
    for descriptor in sorted({number for number in keep if number > 2}):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, max(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65536))


def _leave_namespaces() -> bool:
    # Landlock and seccomp hold without it, so a host that forbids name spaces is no reason to refuse.
    unshare: Callable[[int], int] = _libc().unshare
    if unshare(_NEWNET | _NEWIPC) == 0:
        return True
    uid, gid = os.getuid(), os.getgid()
    if unshare(_NEWUSER | _NEWNET | _NEWIPC) != 0:
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text, encoding="ascii")
    resource.setrlimit(resource.RLIMIT_NPROC, _within(resource.RLIMIT_NPROC, Limits().threads))
    return True


def _set_limits(limits: Limits, *, device: str) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, _within(resource.RLIMIT_FSIZE, limits.file_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, _within(resource.RLIMIT_NOFILE, limits.open_files))
    if limits.cpu_s:
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = math.ceil(used.ru_utime + used.ru_stime + limits.cpu_s)
        # A second between the signal that says why and the one that cannot be caught.
        hard = _within(resource.RLIMIT_CPU, cpu_s + 1)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (min(cpu_s, hard), hard))
    # Accelerators map more address space than there is memory; there the supervisor watches what is resident.
    if limits.memory_bytes and device.startswith("cpu"):
        virtual, data = memory_in_use()
        whole = virtual + limits.memory_bytes + limits.mapped_bytes + VIRTUAL_SLACK_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, _within(resource.RLIMIT_DATA, data + limits.memory_bytes))
        resource.setrlimit(resource.RLIMIT_AS, _within(resource.RLIMIT_AS, whole))


def memory_left() -> int:
    """Bytes of private memory that this process may still take; 0 where nothing bounds it."""
    bound, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return 0 if bound == resource.RLIM_INFINITY else max(1, bound - memory_in_use()[1])


def memory_in_use() -> tuple[int, int]:
    """(address space, private writable memory) of this process in bytes, as RLIMIT_AS and RLIMIT_DATA count them."""
    found = {"VmSize": 0, "VmData": 0}
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) * 1024
    return found["VmSize"], found["VmData"]


def _within(kind: int, wanted: int) -> tuple[int, int]:
    hard = resource.getrlimit(kind)[1]
    value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    return (value, value)


def _give_up_privileges() -> None:
    prctl: Callable[..., int] = _libc().prctl
    for capability in range(64):
        prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    prctl(_PR_CAP_AMBIENT, _CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    if prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs was refused")
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    call: Callable[..., int] = _libc().syscall
    if call(ctypes.c_long(_CAPSET[os.uname().machine]), header, nothing):
        raise OSError(ctypes.get_errno(), "the capabilities could not be given up")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
