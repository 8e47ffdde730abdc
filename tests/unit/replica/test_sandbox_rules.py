"""What the sandbox would allow, without entering it."""

import os
from pathlib import Path

import pytest

import inference
from inference.replica import landlock, sandbox
from inference.replica.landlock import MAKE_REG, READ, WRITE, WRITE_FILE
from inference.replica.sandbox import Limits, Plan, SandboxUnavailable, require_support, rules


def test_only_the_scratch_folders_are_writable():
    plan = Plan(Path("/w/scratch"), (Path("/w/artifact"),), also_writable=(Path("/w/out"),))
    writable = {rule.path for rule in rules(plan) if rule.access & MAKE_REG}
    assert writable == {Path("/w/scratch"), Path("/w/out")}
    assert {rule.path for rule in rules(plan) if rule.access & WRITE_FILE} - writable == {Path("/dev/null")}


def test_without_a_home_nothing_is_writable():
    assert not any(rule.access & MAKE_REG for rule in rules(Plan(None)))


def test_no_source_root_is_readable_only_the_package():
    package = Path(inference.__file__).parent
    readable = [rule.path for rule in rules(Plan(None)) if rule.access & READ]
    assert package in readable
    assert not any(package.parent.is_relative_to(path) for path in readable if path != Path("/"))
    assert Path("/") not in readable
    assert not any(path in (Path("/etc"), Path("/proc"), Path("/tmp"), Path.home()) for path in readable)


@pytest.mark.parametrize("version", range(1, 8))
def test_rights_are_cut_to_what_the_kernel_knows(version):
    files, network, scopes = landlock.handled(version)
    assert files.bit_length() == {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)
    assert bool(network) == (version >= 4)
    assert bool(scopes) == (version >= 6)
    assert WRITE & files <= files


def test_a_kernel_without_landlock_is_a_clear_refusal_with_a_way_out(monkeypatch):
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    with pytest.raises(SandboxUnavailable, match="SERINUS_SANDBOX=off"):
        require_support({})
    require_support({"SERINUS_SANDBOX": "off"})


def test_an_architecture_without_a_filter_is_refused(monkeypatch):
    monkeypatch.setattr(landlock, "abi", lambda: 7)
    monkeypatch.setattr(sandbox.seccomp, "is_supported", lambda: False)
    with pytest.raises(SandboxUnavailable, match="x86_64 and aarch64"):
        require_support({})


def test_the_walls_describe_themselves_in_plain_values():
    described = sandbox.Walls(7, True, True, True, Limits(memory_bytes=1)).describe()
    assert described["landlock_abi"] == 7
    assert described["limits"]["memory_bytes"] == 1


def test_cuda_gets_its_devices_and_keeps_its_address_space(monkeypatch):
    monkeypatch.setattr(sandbox.glob, "glob", lambda pattern: [pattern.replace("*", "0")])
    paths = {str(rule.path) for rule in rules(Plan(None, device="cuda:0"))}
    assert {"/dev/nvidia0", "/proc/driver/nvidia"} <= paths
    assert "/dev/nvidia0" not in {str(rule.path) for rule in rules(Plan(None))}
    limited = []
    monkeypatch.setattr(sandbox.resource, "setrlimit", lambda kind, _: limited.append(kind))
    sandbox._set_limits(Limits(memory_bytes=1 << 30), device="cuda:0")
    assert sandbox.resource.RLIMIT_AS not in limited
    sandbox._set_limits(Limits(memory_bytes=1 << 30), device="tpu:0")
    assert sandbox.resource.RLIMIT_AS not in limited
    sandbox._set_limits(Limits(memory_bytes=1 << 30), device="cpu")
    assert {sandbox.resource.RLIMIT_AS, sandbox.resource.RLIMIT_DATA} <= set(limited)


def test_memory_in_use_is_what_the_kernel_counts():
    virtual, data = sandbox.memory_in_use()
    assert virtual > data > 0
    assert virtual >= int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") * 0.9
