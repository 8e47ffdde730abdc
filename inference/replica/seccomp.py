"""A seccomp filter built by hand: what a model's process may not ask the kernel for. Denied calls answer EPERM.

The law: what Landlock cannot see is refused here. Unix sockets by path (connect, sendto with an address, datagram
pairs), new sockets at all, other processes, namespaces, mounts, files' modes and owners, new processes. Sending on
sockets that were accepted stays possible. A foreign system call convention kills the process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable

# Name -> (x86_64, aarch64); None where the architecture has no such call. From the kernel's unistd.h of each.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # sockets: only those that are there or accepted
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "sendmmsg": (307, 269),
    # ways around the filter
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "tkill": (200, 130),
    "kcmp": (312, 272), "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # new processes and programs
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    # name spaces and file systems
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429),
    "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "fanotify_init": (300, 262), "mknod": (133, None), "mknodat": (259, 33),
    # modes, owners and times of files, which Landlock leaves to their owner
    "chmod": (90, None), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "lchown": (94, None),
    "fchown": (93, 55), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "setxattrat": (463, 463),
    "removexattrat": (466, 466), "utime": (132, None), "utimes": (235, None), "futimesat": (261, None),
    "utimensat": (280, 88),
    # the kernel itself
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "syslog": (103, 116), "personality": (135, 92), "iopl": (172, None),
    "ioperm": (173, None), "vhangup": (153, 58), "lookup_dcookie": (212, 18),
}  # fmt: skip
SENDTO, SOCKETPAIR, CLONE, CLONE3, PRLIMIT = (44, 206), (53, 199), (56, 220), (435, 435), (302, 261)
SELF_ONLY = {"kill": (62, 129), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240)}

# Architecture -> (its place in the pairs above, AUDIT_ARCH_*, number of the seccomp call).
ARCHITECTURES = {"x86_64": (0, 0xC000003E, 317), "aarch64": (1, 0xC00000B7, 277)}

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BITS, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NR, _ARCH, _ARGS = 0, 4, 16
_X32_BIT = 0x40000000
_CLONE_THREAD, _SOCK_STREAM, _SOCK_TYPE_MASK = 0x10000, 1, 0xF
_SET_MODE_FILTER = 1

Instruction = tuple[int, int, int, int]


def program(machine: str, pid: int) -> list[Instruction]:
    """The filter as (code, jump if true, jump if false, constant) for a process `pid` on `machine`."""
    column, arch, _ = ARCHITECTURES[machine]
    code: list[Instruction] = [(_LOAD, 0, 0, _ARCH), (_JUMP_EQUAL, 1, 0, arch), _ret(_KILL), (_LOAD, 0, 0, _NR)]
    if machine == "x86_64":
        code += [(_JUMP_AT_LEAST, 0, 1, _X32_BIT), _ret(_KILL)]
    for pair in DENIED.values():
        number = pair[column]
        if number is not None:
            code += [(_JUMP_EQUAL, 0, 1, number), _ret(_ERRNO | errno.EPERM)]
    # glibc falls back to clone, whose flags can be looked at.
    code += [(_JUMP_EQUAL, 0, 1, CLONE3[column]), _ret(_ERRNO | errno.ENOSYS)]
    code += _block(CLONE[column], [(_LOAD, 0, 0, _ARGS), (_JUMP_BITS, 0, 1, _CLONE_THREAD)])
    code += _block(SENDTO[column], _zero_pointer(4))
    stream_only = [(_LOAD, 0, 0, _ARGS + 8), (_AND, 0, 0, _SOCK_TYPE_MASK), (_JUMP_EQUAL, 0, 1, _SOCK_STREAM)]
    code += _block(SOCKETPAIR[column], stream_only)
    for pair in SELF_ONLY.values():
        code += _block(pair[column], [(_LOAD, 0, 0, _ARGS), (_JUMP_EQUAL, 0, 1, pid)])
    code += _block(PRLIMIT[column], [(_LOAD, 0, 0, _ARGS), (_JUMP_EQUAL, 1, 0, 0), (_JUMP_EQUAL, 0, 1, pid)])
    return [*code, _ret(_ALLOW)]


def install() -> None:
    """Puts the filter on this thread and all it will start. Needs no_new_privs. Raises OSError."""
    machine = platform.machine()
    _, _, number = ARCHITECTURES[machine]
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in program(machine, os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    libc: ctypes.CDLL = ctypes.CDLL(None, use_errno=True)
    call: Callable[..., int] = libc.syscall
    if call(ctypes.c_long(number), ctypes.c_ulong(_SET_MODE_FILTER), ctypes.c_ulong(0), ctypes.c_char_p(header)):
        failed = ctypes.get_errno()
        raise OSError(failed, f"seccomp: {os.strerror(failed)}")


def is_supported() -> bool:
    """Whether this machine's architecture is one that the filter is written for."""
    return platform.machine() in ARCHITECTURES


def _ret(value: int) -> Instruction:
    return (_RETURN, 0, 0, value)


def _zero_pointer(argument: int) -> list[Instruction]:
    low = _ARGS + 8 * argument
    return [(_LOAD, 0, 0, low), (_JUMP_EQUAL, 0, 3, 0), (_LOAD, 0, 0, low + 4), (_JUMP_EQUAL, 0, 1, 0)]


def _block(number: int, test: list[Instruction]) -> list[Instruction]:
    # `test` falls through to ALLOW and jumps over it to EPERM; a block that is not entered leaves the number loaded.
    body = [*test, _ret(_ALLOW), _ret(_ERRNO | errno.EPERM)]
    return [(_JUMP_EQUAL, 0, len(body), number), *body]
