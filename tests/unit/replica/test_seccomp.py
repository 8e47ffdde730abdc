"""The seccomp program, interpreted here as the kernel would."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.replica import seccomp

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
MACHINES = sorted(seccomp.ARCHITECTURES)
PID = 4242


def answer(machine, number, *arguments, arch=None):
    """What the filter returns for one system call."""
    _, own_arch, _ = seccomp.ARCHITECTURES[machine]
    words = {0: number, 4: own_arch if arch is None else arch}
    for index in range(6):
        value = arguments[index] if index < len(arguments) else 0
        words[16 + 8 * index], words[20 + 8 * index] = value & 0xFFFFFFFF, value >> 32
    code, at, register = seccomp.program(machine, PID), 0, 0
    while True:
        operation, on_true, on_false, constant = code[at]
        at += 1
        if operation == 0x06:
            return constant
        if operation == 0x20:
            register = words[constant]
        elif operation == 0x54:
            register &= constant
        else:
            test = {0x15: register == constant, 0x35: register >= constant, 0x45: bool(register & constant)}[operation]
            at += on_true if test else on_false


@pytest.mark.parametrize("machine", MACHINES)
def test_every_denied_call_answers_eperm(machine):
    column = seccomp.ARCHITECTURES[machine][0]
    for name, pair in seccomp.DENIED.items():
        if pair[column] is not None:
            assert answer(machine, pair[column]) == EPERM, name


@pytest.mark.parametrize("machine", MACHINES)
def test_a_foreign_architecture_kills(machine):
    assert answer(machine, 0, arch=0x40000003) == KILL


def test_the_x32_convention_kills():
    assert answer("x86_64", 0x40000000 | 42) == KILL


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide(machine):
    column = seccomp.ARCHITECTURES[machine][0]
    sendto, pair, clone = seccomp.SENDTO[column], seccomp.SOCKETPAIR[column], seccomp.CLONE[column]
    assert answer(machine, sendto, 5, 1, 1, 0, 0) == ALLOW
    assert answer(machine, sendto, 5, 1, 1, 0, 0x1000) == EPERM
    assert answer(machine, sendto, 5, 1, 1, 0, 0x1_0000_0000) == EPERM
    assert answer(machine, pair, 1, 1 | 0o2000000) == ALLOW
    assert answer(machine, pair, 1, 2) == EPERM
    assert answer(machine, clone, 0x3D0F00) == ALLOW
    assert answer(machine, clone, 17) == EPERM
    assert answer(machine, seccomp.CLONE3[column]) == ENOSYS
    for number in (pair_of[column] for pair_of in seccomp.SELF_ONLY.values()):
        assert answer(machine, number, PID) == ALLOW
        assert answer(machine, number, 1) == EPERM
    assert answer(machine, seccomp.PRLIMIT[column], 0) == ALLOW
    assert answer(machine, seccomp.PRLIMIT[column], 1) == EPERM


@given(number=st.integers(0, 500), machine=st.sampled_from(MACHINES))
def test_any_call_gets_an_answer_and_ordinary_ones_pass(number, machine):
    column = seccomp.ARCHITECTURES[machine][0]
    judged = {pair[column] for pair in (*seccomp.DENIED.values(), *seccomp.SELF_ONLY.values())}
    judged |= {seccomp.SENDTO[column], seccomp.SOCKETPAIR[column], seccomp.CLONE[column], seccomp.CLONE3[column]}
    if number not in judged:
        assert answer(machine, number) == ALLOW
