"""A replica for real: its own sandboxed process, a unix socket, the echo model, faults on magic values."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from inference.protocol.child import ChildPaths, Drain, FromChild, PhaseReport, StartReplica
from inference.protocol.frames import Decoder, encode
from inference.protocol.messages import (
    Answer,
    Cancel,
    Fault,
    FromReplica,
    Goodbye,
    Hello,
    Infer,
    Ping,
    Pong,
    TensorHeader,
)
from inference.protocol.oip import Signature
from inference.protocol.status import ReplicaPhase
from inference.protocol.supervision import FileRef, ReplicaSpec
from tests.support.standby import standby

POISON, ABORT, HANG, SLOW_MS = 13.0, 66.0, 99.0, 40.0


class Wire:
    """One end of a stream of frames, blocking, with a time limit."""

    def __init__(self, sock, kind):
        self.sock, self.decoder, self.seen = sock, Decoder(kind), []
        sock.settimeout(20)

    def send(self, message, *body):
        self.sock.sendall(encode(message, *body))

    def next(self):
        while not self.seen:
            data = self.sock.recv(1 << 16)
            if not data:
                return None
            self.seen += self.decoder.feed(data)
        return self.seen.pop(0)

    def until(self, test):
        """The first message that fits, and its body."""
        while (found := self.next()) is not None:
            if test(found[0]):
                return found
        raise AssertionError("the stream ended")


class Replica:
    """The child, its control socket and its listener, as the supervisor would hold them."""

    def __init__(self, root: Path, plan: dict, **settings):
        self.root = root
        blobs, work = root / "store", root / "work"
        work.mkdir()
        data = json.dumps(plan).encode()
        digest = hashlib.sha256(data).hexdigest()
        self.blob = blobs / "blobs" / digest[:2] / digest
        self.blob.parent.mkdir(parents=True)
        self.blob.write_bytes(data)
        spec = ReplicaSpec(
            "r1", 7, "digits", 3, "d", "echo", "data", [FileRef("echo.json", len(data), digest)],
            Signature([], []), {"window_ms": 2, **settings},
        )  # fmt: skip
        self.message = StartReplica(spec, ChildPaths(str(blobs), str(work)))
        self.path = str(root / "l")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()

    def start(self):
        ours, theirs = socket.socketpair()
        self.process = standby().fork(self.message, [theirs.fileno(), self.listener.fileno()], self.root / "log")
        theirs.close()
        self.control = Wire(ours, FromChild)
        return self

    def ready(self):
        self.control.until(lambda m: isinstance(m, PhaseReport) and m.phase is ReplicaPhase.READY)
        return self

    def connect(self):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)
        wire = Wire(sock, FromReplica)
        hello, _ = wire.next()
        assert isinstance(hello, Hello)
        return wire

    def exit_status(self):
        return self.process.wait(20)

    def close(self):
        self.process.kill()
        self.process.wait()
        self.control.sock.close()
        self.listener.close()


@pytest.fixture
def make(tmp_path):
    made = []

    def build(plan=None, **settings):
        made.append(Replica(tmp_path, plan or {}, **settings))
        return made[-1].start()

    yield build
    for replica in made:
        replica.close()


PLAN = {
    "factor": 2.0,
    "offset": 1.0,
    "signature": {
        "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1, 2]}],
        "max_batch_size": 8,
    },
    "sleep_ms": SLOW_MS,
    "faults": [{"value": POISON, "kind": "raise"}, {"value": ABORT, "kind": "abort"}, {"value": HANG, "kind": "hang"}],
}


def ask(wire, request_id, *values, timeout_ms=10_000, name="input", datatype="FP32", shape=None, body=None):
    data = np.repeat(np.array(values, dtype="<f4")[:, None], 2, axis=1).tobytes() if body is None else body
    header = TensorHeader(name, datatype, shape or [len(values), 2], len(data))
    wire.send(Infer(request_id, timeout_ms, [header]), data)


def answers(wire, count):
    """id -> (message, output values)."""
    found = {}
    while len(found) < count:
        message, body = wire.next()
        assert isinstance(message, Answer | Fault)
        found[message.id] = (message, np.frombuffer(body, "<f4").tolist())
    return found


def test_it_answers_what_the_model_computes_and_batches_what_comes_together(make):
    wire = make(PLAN).ready().connect()
    for request_id in range(5):
        ask(wire, request_id, float(request_id), float(request_id) + 0.5)
    found = answers(wire, 5)
    for request_id, (message, values) in found.items():
        first, second = 2 * request_id + 1, 2 * request_id + 2
        assert values == [first, first, second, second]
        assert message.tensors == [TensorHeader("output", "FP32", [2, 2], 16)]
    assert max(message.batch_size for message, _ in found.values()) == 8
    wire.send(Ping(5))
    assert wire.next()[0] == Pong(5)


def test_it_interrupts_nobody_whose_core_it_wants(make):
    replica = make(PLAN).ready()
    threads = [int(name) for name in os.listdir(f"/proc/{replica.process.pid}/task")]
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}


def test_hello_names_the_replica_and_heartbeats_tell_memory(make):
    replica = make(PLAN)
    reports = []
    while not reports or reports[-1].phase is not ReplicaPhase.READY:
        reports.append(replica.control.next()[0])
    assert [r.phase for r in reports] == [ReplicaPhase.LOADING, ReplicaPhase.WARMING, ReplicaPhase.READY]
    beats = [replica.control.next()[0] for _ in range(2)]
    assert all(beat.memory_bytes > 1 << 20 for beat in beats)
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(replica.path)
    assert Wire(sock, FromReplica).next()[0] == Hello("r1", 7, "digits", 3, 1024, takes_blocks=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "other"}, "unexpected inference input 'other' for model 'digits'"),
        ({"shape": [1, 3], "body": bytes(12)}, "unexpected shape for input 'input' for model 'digits'. Expected [-1,2], got [1,3]"),
        ({"shape": [9, 2], "body": bytes(72)}, "inference request batch-size must be <= 8"),
        ({"shape": [-1, 2]}, "must not be negative"),
        ({"shape": [1 << 40, 1 << 40], "body": b""}, "bytes, not 0"),
        ({"datatype": "INT32"}, "data-type is 'INT32', but model 'digits' expects 'FP32'"),
        ({"body": bytes(7)}, "needs 8 bytes, not 7"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_signature_is_refused_in_the_protocols_words(refusing, change, words):
    wire = refusing.connect()
    ask(wire, 1, 1.0, **change)
    fault, _ = wire.next()
    assert isinstance(fault, Fault)
    assert words in fault.message
    assert fault.code == "invalid_input"


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    replica = Replica(tmp_path_factory.mktemp("refusing"), PLAN).start().ready()
    yield replica
    replica.close()


def test_bytes_that_are_no_frames_cut_that_connection_only(refusing):
    good, bad = refusing.connect(), refusing.connect()
    bad.sock.sendall(b"\xff" * 64)
    assert bad.sock.recv(100) == b""
    ask(good, 1, 1.0)
    assert answers(good, 1)[1][1] == [3, 3]


def test_only_the_poisonous_request_of_a_batch_fails(refusing):
    wire = refusing.connect()
    for request_id, value in enumerate((0, 1, 2, POISON, 4, 5, 6, 7)):
        ask(wire, request_id, float(value))
    found = answers(wire, 8)
    assert isinstance(found[3][0], Fault)
    assert found[3][0].code == "poison_input"
    for request_id in set(range(8)) - {3}:
        assert found[request_id][1] == [2 * request_id + 1] * 2


def test_cancelled_and_expired_work_is_never_executed(make):
    # An aborting input would end the process if it ran.
    replica = make(PLAN).ready()
    wire = replica.connect()
    ask(wire, 1, 1.0)
    time.sleep(0.015)
    ask(wire, 2, ABORT)
    ask(wire, 3, ABORT, timeout_ms=10)
    ask(wire, 4, 4.0)
    wire.send(Cancel(2))
    found = answers(wire, 3)
    assert found[3][0].code == "deadline_exceeded"
    assert (found[1][1], found[4][1]) == ([3, 3], [9, 9])
    leaving = replica.connect()
    ask(wire, 5, 5.0)
    time.sleep(0.015)
    ask(leaving, 1, ABORT)
    leaving.sock.close()
    assert answers(wire, 1)[5][1] == [11, 11]
    ask(wire, 6, 6.0)
    assert answers(wire, 1)[6][1] == [13, 13]


def test_a_full_queue_is_an_immediate_fault_with_a_time_to_come_back(make):
    wire = make(PLAN, queue_limit=2).ready().connect()
    ask(wire, 0, 0.0)
    time.sleep(0.015)
    began = time.monotonic()
    for request_id in range(1, 6):
        ask(wire, request_id, 1.0)
    faults = [wire.next()[0] for _ in range(3)]
    assert time.monotonic() - began < SLOW_MS / 1e3
    assert {fault.code for fault in faults} == {"overloaded"}
    assert all(fault.retry_after_s > 0 for fault in faults)
    assert len(answers(wire, 3)) == 3


def test_a_hung_pass_fails_its_callers_and_ends_the_process_with_its_own_status(make):
    replica = make(PLAN, hang_timeout_s=0.3).ready()
    wire = replica.connect()
    ask(wire, 1, HANG, timeout_ms=100)
    ask(wire, 2, HANG)
    found = answers(wire, 2)
    assert found[1][0].code == "deadline_exceeded"
    # On a busy machine the kernel's timer may end the process first; the other end then says that it was lost.
    assert found[2][0].code in {"model_failed", "replica_lost"}
    last, _ = replica.control.until(lambda m: m.phase is ReplicaPhase.FAILED)
    assert "longer than 0.3 s" in last.message
    assert replica.exit_status() == 86


def test_draining_answers_what_is_under_way_then_ends(make):
    replica = make(PLAN).ready()
    wire = replica.connect()
    for request_id in range(12):
        ask(wire, request_id, 1.0)
    time.sleep(0.02)
    replica.control.send(Drain(5.0))
    goodbye, _ = wire.next()
    assert goodbye == Goodbye()
    ask(wire, 99, 1.0)
    found = answers(wire, 13)
    assert found.pop(99)[0].code == "draining"
    assert all(values == [3, 3] for _, values in found.values())
    last, _ = wire.next()
    assert (last.id, last.statistics.success.count, last.statistics.fail.count) == (0, 12, 1)
    assert last.statistics.life
    assert last.statistics.memory["cpu"] > 1 << 20
    assert replica.exit_status() == 0


def test_sigterm_drains_too(make):
    replica = make(PLAN).ready()
    wire = replica.connect()
    ask(wire, 1, 1.0)
    time.sleep(0.01)
    replica.process.send_signal(signal.SIGTERM)
    assert wire.next()[0] == Goodbye()
    assert answers(wire, 1)[1][1] == [3, 3]
    assert replica.exit_status() == 0


def test_it_ends_when_its_supervisor_is_gone(make):
    replica = make(PLAN).ready()
    replica.control.sock.close()
    assert replica.exit_status() == 0


def test_an_artifact_changed_by_one_bit_is_never_loaded(tmp_path):
    replica = Replica(tmp_path, PLAN)
    data = bytearray(replica.blob.read_bytes())
    data[-3] ^= 1
    replica.blob.write_bytes(data)
    replica.start()
    last, _ = replica.control.until(lambda m: m.phase is ReplicaPhase.FAILED)
    status = replica.exit_status()
    replica.close()
    assert "artifact changed" in last.message
    assert status == 81


@pytest.mark.parametrize("kind", ["raise", "exit", "interrupt"])
def test_a_model_that_fails_while_loading_says_so(make, kind):
    replica = make({"at_load": kind})
    last, _ = replica.control.until(lambda m: m.phase is ReplicaPhase.FAILED)
    assert "loading failed" in last.message
    assert replica.exit_status() == 81


def test_what_a_request_allocates_without_bound_is_a_fault_not_the_end(tmp_path):
    replica = Replica(tmp_path, {**PLAN, "faults": [{"value": 5, "kind": "allocate"}]})
    spec = msgspec.structs.replace(replica.message.spec, memory_bytes=256 << 20)
    replica.message = msgspec.structs.replace(replica.message, spec=spec)
    wire = replica.start().ready().connect()
    ask(wire, 1, 5.0)
    ask(wire, 2, 2.0)
    found = answers(wire, 2)
    replica.close()
    assert found[1][0].code == "out_of_memory"
    assert found[2][1] == [5, 5]


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_kernel_ends_a_pass_that_hangs_without_letting_python_run(lanes):
    # PyDLL keeps the interpreter's lock, so that no watchdog written in Python could act.
    body = f"""
import ctypes, threading, time, types
from inference.replica.alarm import Alarm
from inference.replica.executors import watched
alarm = Alarm(0.2)
def others():
    quick = types.SimpleNamespace(run_requests=lambda requests: time.sleep(0.001))
    while True:
        watched(quick, alarm, threading.get_ident())([{{}}])
for _ in range({lanes} - 1):
    threading.Thread(target=others, daemon=True).start()
time.sleep(0.5)
runner = types.SimpleNamespace(run_requests=lambda requests: ctypes.PyDLL(None).sleep(30))
watched(runner, alarm, 0)([{{}}])
"""
    done = subprocess.run([sys.executable, "-c", body], env={"PYTHONPATH": str(Path.cwd())}, timeout=20, check=False)
    assert done.returncode == -signal.SIGALRM
