"""Landlock by system call: which files a process may read and write, no TCP, no signals out. Needs no privilege.

Rules are additive along the file hierarchy, so a writable folder must lie beside, never above, what is read-only.
Source: the kernel's Documentation/userspace-api/landlock.rst, ABI 1 to 7.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_VERSION_FLAG, _RULE_PATH_BENEATH = 1, 1

READ_FILE, READ_DIR = 1 << 2, 1 << 3
WRITE_FILE, TRUNCATE, IOCTL_DEV = 1 << 1, 1 << 14, 1 << 15
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_SYM, REFER = 1 << 4, 1 << 5, 1 << 7, 1 << 8, 1 << 12, 1 << 13
READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV
_FILE_RIGHTS = 1 | READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV
_NET_ALL, _SCOPE_ALL = 0b11, 0b11


@dataclass(frozen=True, slots=True)
class Rule:
    """What is allowed at `path` and beneath it."""

    path: Path
    access: int


def abi() -> int:
    """The kernel's Landlock version; 0 when it has none or it is off."""
    return max(0, _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG)))


def handled(version: int) -> tuple[int, int, int]:
    """Rights that ABI `version` knows: (file system, network, scopes)."""
    bits = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)
    return (1 << bits) - 1, _NET_ALL if version >= 4 else 0, _SCOPE_ALL if version >= 6 else 0


def restrict(rules: Iterable[Rule]) -> int:
    """Restricts this thread and all it will start to `rules`; answers the ABI. Paths that do not exist are left out.

    Needs no_new_privs. Raises OSError.
    """
    version = abi()
    files, network, scopes = handled(version)
    attributes = struct.pack("<QQQ", files, network, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _checked(_CREATE, ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    try:
        for rule in rules:
            _add(ruleset, rule, files)
        _checked(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return version


def _add(ruleset: int, rule: Rule, files: int) -> None:
    try:
        descriptor = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        access = rule.access & files
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            access &= _FILE_RIGHTS
        attribute = ctypes.c_char_p(struct.pack("<Qi", access, descriptor))
        _checked(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_RULE_PATH_BENEATH), attribute, ctypes.c_uint32(0))
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    libc: ctypes.CDLL = ctypes.CDLL(None, use_errno=True)
    call: Callable[..., int] = libc.syscall
    return call(ctypes.c_long(number), *arguments)


def _checked(number: int, *arguments: object) -> int:
    result = _call(number, *arguments)
    if result < 0:
        failed = ctypes.get_errno()
        raise OSError(failed, f"landlock: {os.strerror(failed)}")
    return result
