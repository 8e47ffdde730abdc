"""The supervisor with real processes: every promise of the room, injected for real. The model is a light stand-in."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from inference.errors import NotFound
from inference.host.client import SupervisorClient, SupervisorUnreachable
from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import AdapterSpec, FileRef
from tests.support.hosts import Host, find, running, spec, stored, validation


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with running(
        tmp_path, SERINUS_HEARTBEAT_S="1", SERINUS_VALIDATION_TIMEOUT_S="1", SERINUS_LOAD_TIMEOUT_S="2"
    ) as one:
        yield one


def call(address: str, timeout_s: float = 5.0) -> int:
    """The pid of the replica that answers at `address`."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout_s)
        sock.connect(address.removeprefix("unix:"))
        return int(sock.recv(64))


def all_gone(processes: list[psutil.Process], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if not any(
            p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes if psutil.pid_exists(p.pid)
        ):
            return True
        time.sleep(0.01)
    return False


def witness(host: Host) -> dict[str, object]:
    return json.loads((host.data / "witness.json").read_text())


def test_a_replica_stands_within_100_ms_of_standby_and_answers_on_its_listener(host: Host) -> None:
    took_s = []
    for number in range(1, 4):  # the quickest of three: a busy machine is no slower standby
        began = time.monotonic()
        host.client.converge([spec(generation=number)])
        ready = host.wait_ready(generation=number)
        took_s.append(time.monotonic() - began)
    assert min(took_s) < 0.5  # 0.02 measured
    assert call(ready.address) == ready.pid
    assert (ready.queue_depth, ready.memory_bytes, ready.restarts) == (2, 1, 0)


def test_a_killed_replica_is_replaced_within_a_second_at_the_same_address(host: Host) -> None:
    host.client.converge([spec()])
    first = host.wait_ready()
    os.kill(first.pid, signal.SIGKILL)
    assert call(first.address) != first.pid  # waits in the backlog of the listener that stayed open
    second = host.wait_ready(not_pid=first.pid, timeout_s=1.0)
    assert second.address == first.address
    assert second.restarts == 1
    assert "SIGKILL" in second.message


def test_a_crash_loop_backs_off_and_is_given_up_with_the_reason(tmp_path: Path) -> None:
    with running(tmp_path) as host:
        host.client.converge([spec(act="crash")])
        backing_off = find(host.wait(lambda s: (one := find(s)) is not None and one.restarts >= 2))
        assert backing_off
        assert backing_off.phase is not ReplicaPhase.READY
        gone = find(host.wait(lambda s: (one := find(s)) is not None and one.phase is ReplicaPhase.FAILED, 40.0))
        assert gone
        assert "given up after 5 crashes" in gone.message
        assert "SIGSEGV" in gone.message
        assert gone.restarts == 5
        assert not Path(gone.address.removeprefix("unix:")).exists()
        host.client.restart("a")
        host.wait(lambda s: (one := find(s)) is not None and one.restarts > 5)


def test_what_the_child_says_of_its_own_failure_is_kept(host: Host) -> None:
    host.client.converge([spec(act="refuse")])
    host.wait(lambda s: "the artifact changed" in find(s).message)


def test_a_frozen_replica_is_replaced(host: Host) -> None:
    host.client.converge([spec()])
    first = host.wait_ready()
    os.kill(first.pid, signal.SIGSTOP)
    second = host.wait_ready(not_pid=first.pid, timeout_s=5.0)
    assert "no sign of life for 1 s" in second.message


@pytest.mark.parametrize(
    ("act", "more", "words"),
    [
        ("hang_load", {}, "loading took longer than 2 s"),
        ("eat", {"memory_bytes": 200 << 20}, "used more than 200 MiB of memory"),
        ("garbage", {}, "sent what cannot be read"),
    ],
)
def test_a_replica_that_misbehaves_is_ended_and_told_why(
    host: Host, act: str, more: dict[str, object], words: str
) -> None:
    host.client.converge([spec(act=act, **more)])
    host.wait(lambda s: find(s) is not None and words in find(s).message and find(s).restarts >= 1, 12.0)


def test_nothing_outlives_a_killed_supervisor_and_its_successor_brings_all_back(tmp_path: Path) -> None:
    with running(tmp_path) as host:
        host.client.converge([spec("a"), spec("b", act="leave_orphan")])
        host.wait_ready("a")
        host.wait_ready("b")
        family = host.family()
        assert len(family) == 4  # fork server, two replicas, an orphan-to-be in a session of its own
        children = [process for process in family if process.name() != "sleep"]
        host.kill()
        assert all_gone(children, 2.0)
        host.start(standby=False)
        began = time.monotonic()
        assert host.wait_ready("a").restarts == 0  # from wanted.json: nobody told this supervisor anything
        assert time.monotonic() - began < 10
        host.wait_ready("b")
        assert all_gone(family, 1.0)


def test_a_dead_replica_leaves_no_grandchild_behind(host: Host) -> None:
    host.client.converge([spec(act="leave_orphan")])
    ready = host.wait_ready()
    orphans = psutil.Process(ready.pid).children()
    assert len(orphans) == 1
    os.kill(ready.pid, signal.SIGKILL)
    assert all_gone(orphans, 2.0)


def test_a_killed_fork_server_is_replaced_and_its_replicas_come_back(host: Host) -> None:
    host.client.converge([spec("a"), spec("b")])
    first = [host.wait_ready("a"), host.wait_ready("b")]
    server = host.forkserver()
    server.kill()
    for before in first:
        after = host.wait_ready(before.id, not_pid=before.pid)
        assert "fork server" in after.message
    assert host.forkserver().pid != server.pid


def test_converge_is_idempotent_and_an_older_generation_is_ignored(host: Host) -> None:
    for _ in range(50):
        host.client.converge([spec("a", 3), spec("b", 1)])
    ready = host.wait_ready("a", 3)
    host.wait_ready("b")
    host.client.converge([spec("a", 2), spec("b", 1)])
    seen = host.client.converge([spec("a", 2), spec("b", 1)])
    assert {(r.id, r.generation) for r in seen.replicas} == {("a", 3), ("b", 1)}
    assert find(seen, "a", 3).pid == ready.pid
    assert len(host.family()) == 3


def test_the_old_generation_serves_until_the_new_one_is_ready(host: Host) -> None:
    host.client.converge([spec("a", 1)])
    old = host.wait_ready("a", 1)
    host.client.converge([spec("a", 2, act="slow_load")])
    both = host.wait(lambda s: find(s, "a", 2) is not None)
    assert find(both, "a", 1).phase is ReplicaPhase.READY
    assert call(old.address) == old.pid
    host.wait_ready("a", 2)
    host.wait(lambda s: find(s, "a", 1) is None)
    assert (host.data / "drained").read_text() == str(old.pid)


def test_an_exclusive_device_is_left_before_the_new_generation_takes_it(host: Host) -> None:
    host.client.converge([spec("a", 1, device="tpu:0")])
    host.wait_ready("a", 1)
    host.client.converge([spec("a", 2, device="tpu:0", act="slow_load")])
    seen = host.wait(lambda s: find(s, "a", 2) is not None)
    assert find(seen, "a", 1) is None
    host.wait_ready("a", 2)


def test_a_replica_no_longer_wanted_drains_and_its_address_goes_at_once(host: Host) -> None:
    host.client.converge([spec()])
    ready = host.wait_ready()
    host.client.converge([])
    assert not Path(ready.address.removeprefix("unix:")).exists()
    host.wait(lambda s: not s.replicas)
    assert (host.data / "drained").read_text() == str(ready.pid)
    host.wait(lambda _: not any((host.data / "work").iterdir()))


def test_a_replica_that_will_not_drain_is_killed(host: Host) -> None:
    host.client.converge([spec(act="deaf")])
    ready = host.wait_ready()
    host.client.converge([])
    host.wait(lambda s: (one := find(s)) is not None and one.phase is ReplicaPhase.DRAINING)
    host.wait(lambda s: not s.replicas, 6.0)
    assert not psutil.pid_exists(ready.pid)


def test_sigterm_drains_everything_and_ends(host: Host) -> None:
    host.client.converge([spec()])
    ready = host.wait_ready()
    family = host.family()
    assert host.process
    host.process.send_signal(signal.SIGTERM)
    assert host.process.wait(5) == 0
    assert (host.data / "drained").read_text() == str(ready.pid)
    assert all_gone(family, 1.0)
    with pytest.raises(SupervisorUnreachable):
        host.client.look()


def test_a_second_supervisor_in_the_same_folder_is_refused(host: Host) -> None:
    second = Host(host.data)
    try:
        second.start(standby=False)
        assert second.process
        assert second.process.wait(10) == 2
        assert "another supervisor runs" in (host.data / "supervisor.log").read_text()
        assert host.client.look().standby_ready
    finally:
        second.close()


def test_a_child_knows_no_secret_holds_no_foreign_descriptor_and_dies_first(host: Host) -> None:
    host.client.converge([spec("a"), spec("b")])
    host.wait_ready("a")
    host.wait_ready("b")
    host.client.converge([spec("a"), spec("b"), spec("c")])
    pid = host.wait_ready("c").pid
    seen = witness(host)
    assert seen["pid"] == seen["sid"] == pid
    assert (seen["oom"], seen["threads"]) == (500, 1)
    assert sorted(seen["fds"]) == ["0", "1", "2", "3", "4"]
    environ = seen["environ"]
    assert not {"DATABASE_URL", "REDIS_URL", "SERINUS_SECRET_KEY", "SERINUS_DATA_DIR"} & set(environ)
    assert "hunter2" not in json.dumps(environ)
    assert environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environ["HOME"] == seen["cwd"]
    assert environ["HOME"].startswith(str(host.data / "work"))
    assert "child speaking" in next((host.data / "logs").glob("replica-*.log")).read_text()


def test_restarts_and_converges_leak_no_descriptor(host: Host) -> None:
    assert host.process
    me = psutil.Process(host.process.pid)
    host.client.converge([spec()])
    pid = host.wait_ready().pid
    before = (me.num_fds(), host.forkserver().num_fds())
    for _ in range(5):
        host.client.restart("a")
        pid = host.wait_ready(not_pid=pid).pid
    assert (me.num_fds(), host.forkserver().num_fds()) == before


def test_the_sockets_and_folders_are_private(host: Host) -> None:
    host.client.converge([spec()])
    ready = host.wait_ready()
    for path in (
        host.runtime / "supervisor.sock",
        Path(ready.address.removeprefix("unix:")),
        host.data / "host" / "wanted.json",
    ):
        assert path.stat().st_mode & 0o777 == 0o600
    for folder in (host.runtime, host.runtime / "r", host.data / "work", host.data / "logs"):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_many_clients_are_answered_and_garbage_harms_nobody(host: Host) -> None:
    clients = [SupervisorClient(host.runtime / "supervisor.sock") for _ in range(10)]
    assert len({client.look().boot for client in clients}) == 1
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(host.runtime / "supervisor.sock"))
        sock.sendall(b"\xff" * 4096)
        assert b"too_large" in sock.recv(4096)
    with pytest.raises(NotFound):
        clients[0].restart("nobody")
    for client in clients:
        client.close()


def test_a_stopped_supervisor_does_not_blame_its_replicas(host: Host) -> None:
    host.client.converge([spec()])
    ready = host.wait_ready()
    assert host.process
    host.process.send_signal(signal.SIGSTOP)
    time.sleep(3.0)
    host.process.send_signal(signal.SIGCONT)
    time.sleep(1.0)
    assert host.wait_ready().pid == ready.pid


def test_a_validation_passes_and_its_result_stays_until_it_is_named_no_more(host: Host) -> None:
    host.client.converge([], [validation()])
    seen = host.wait_verdict()
    assert (seen.run, seen.lease, seen.state) == ("r", 1, "ready")
    assert [(c.name, c.state) for c in seen.checks] == [("hashes", "passed"), ("load", "passed")]
    assert host.client.converge([], [validation()]).validations == [seen]
    assert host.client.converge([]).validations == []
    host.wait(lambda _: not any((host.data / "work").iterdir()))


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("segfault", "SIGSEGV"),
        ("hang", "validation took longer than 1 s"),
        ("eat", "used more than 2.0 GiB of memory"),
        ("quit", "exit code 7"),
    ],
)
def test_a_validation_that_crashes_hangs_or_eats_is_rejected_in_words(tmp_path: Path, act: str, words: str) -> None:
    with running(tmp_path, SERINUS_VALIDATION_TIMEOUT_S="60" if act == "eat" else "1") as host:
        host.client.converge([spec()], [validation(act=act)])
        bystander = host.wait_ready()
        seen = host.wait_verdict(timeout_s=30.0)
        assert seen.state == "rejected"
        assert words in seen.reason
        assert seen.remedy
        assert [(c.name, c.state) for c in seen.checks] == [("hashes", "passed"), ("load", "failed")]
        assert host.wait_ready().pid == bystander.pid


def test_what_a_conversion_made_enters_the_store(host: Host) -> None:
    host.client.converge([], [validation(act="convert")])
    seen = host.wait_verdict()
    assert seen.state == "ready"
    (made,) = seen.converted
    assert isinstance(made, FileRef)
    blob = host.data / "artifacts" / "blobs" / made.sha256[:2] / made.sha256
    assert blob.read_bytes() == b"weights" * 100
    assert blob.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("act", ["convert_lie", "convert_link"])
def test_a_conversion_that_lies_or_links_is_rejected(host: Host, act: str) -> None:
    host.client.converge([], [validation(act=act)])
    seen = host.wait_verdict()
    assert seen.state == "rejected"
    assert seen.converted == []
    assert not list((host.data / "artifacts").rglob("*/*/*"))


def test_runs_wait_for_each_other_and_a_newer_lease_takes_over(host: Host) -> None:
    host.client.converge([], [validation("one", act="hang"), validation("two")])
    assert host.client.look().validations[1].checks == []
    host.client.converge([], [validation("one", lease=2), validation("two")])
    first = host.wait_verdict("one")
    assert (first.state, first.lease) == ("ready", 2)
    host.wait_verdict("two")


def test_a_validation_survives_the_death_of_the_fork_server(host: Host) -> None:
    host.client.converge([], [validation(act="hang")])
    host.wait(lambda s: bool(s.validations) and len(s.validations[0].checks) == 2)
    host.forkserver().kill()
    host.wait(lambda s: s.standby_ready)
    assert host.wait_verdict().state == "rejected"  # ran again, and hung again


def test_fake_devices_are_seen(tmp_path: Path) -> None:
    with running(tmp_path, SERINUS_FAKE_DEVICES="cuda:2,tpu:1") as host:
        devices = host.client.look().devices
    assert devices[0].kind == "cpu"
    assert devices[0].memory_total_bytes > devices[0].memory_free_bytes > 0
    assert {"cuda:0", "cuda:1", "tpu:0"} <= {device.name for device in devices}


@pytest.mark.parametrize(("device", "is_fake"), [("cuda:1", True), ("cpu", False)])
def test_a_child_on_a_fake_device_is_told_so(tmp_path: Path, device: str, is_fake: bool) -> None:
    with running(tmp_path, SERINUS_FAKE_DEVICES="cuda:2") as host:
        host.client.converge([spec(device=device)])
        host.wait_ready()
        seen = witness(host)
    assert seen["is_fake_device"] is is_fake


def adapter(host: Host, name: str, content: bytes) -> AdapterSpec:
    return AdapterSpec(name, f"{name}:1", hashlib.sha256(content).hexdigest(), stored(host, {"weights": content}))


def states(host: Host) -> dict[str, tuple[str, str]]:
    return {one.name: (one.state, one.message) for one in find(host.client.look()).adapters}


def test_adapters_come_and_go_without_a_restart_and_come_back_with_a_new_process(host: Host) -> None:
    host.client.converge([spec()])
    first = host.wait_ready()
    fr, de = adapter(host, "fr", b"un"), adapter(host, "de", b"eins")
    for wanted in ([fr], [fr, de], [de]):
        host.client.converge([spec(adapters=wanted)])
        told = {one.name: ("loaded", f"weights={'un' if one is fr else 'eins'}") for one in wanted}
        host.wait(lambda seen, told=told: {a.name: (a.state, a.message) for a in find(seen).adapters} == told)
    work = next(host.data.glob("work/*/adapters"))
    host.wait(lambda _: [one.name for one in work.iterdir()] == [de.digest])
    seen = find(host.client.look())
    assert (seen.pid, seen.restarts, seen.generation) == (first.pid, 0, 1)
    os.kill(first.pid, signal.SIGKILL)
    host.wait_ready(not_pid=first.pid)
    assert states(host) == {"de": ("loaded", "weights=eins")}


def test_an_adapter_whose_files_changed_is_told_and_never_reaches_the_replica(host: Host) -> None:
    bad, good = adapter(host, "bad", b"one"), adapter(host, "good", b"two")
    blob = host.data / "artifacts" / "blobs" / bad.files[0].sha256[:2] / bad.files[0].sha256
    blob.chmod(0o644)
    blob.write_bytes(b"eno")
    gone = AdapterSpec("gone", "gone:1", "1" * 64, [FileRef("weights", 3, "2" * 64)])
    odd = AdapterSpec("odd", "odd:1", "3" * 64, [FileRef("../weights", 3, bad.files[0].sha256)])
    host.client.converge([spec(adapters=[bad, good, gone, odd])])
    first = host.wait_ready()
    wanted = {
        "bad": ("failed", "artifact changed: weights no longer has the content it was uploaded with"),
        "good": ("loaded", "weights=two"),
        "gone": ("failed", "its files cannot be brought to the replica: No such file or directory"),
        "odd": ("failed", "one of its files has a name that cannot be taken"),
    }
    assert states(host) == wanted
    host.client.converge([spec(adapters=[good])])
    host.wait(lambda seen: len(find(seen).adapters) == 1)
    assert states(host) == {"good": wanted["good"]}
    assert find(host.client.look()).pid == first.pid


def test_adapters_outlive_the_supervisor(host: Host) -> None:
    fr = adapter(host, "fr", b"un")
    host.client.converge([spec()])
    host.wait_ready()
    host.client.converge([spec(adapters=[fr])])
    host.wait(lambda seen: find(seen).adapters != [])
    host.kill()
    host.start()
    host.wait_ready(timeout_s=20)
    assert states(host) == {"fr": ("loaded", "weights=un")}
