"""What validation decides from what it measured, and how it says so."""

import socket

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import OutOfMemory, Rejected
from inference.protocol.child import FromChild
from inference.protocol.frames import Decoder
from inference.protocol.oip import Signature
from inference.protocol.supervision import ValidationSpec
from inference.replica.checklist import STEPS, Checklist
from inference.replica.control import Control
from inference.replica.validation import MAX_PASS_MS, choose_max_batch

BATCHED = Signature(inputs=[], outputs=[], max_batch_size=64)


def test_the_largest_batch_is_the_signature_s_own():
    assert choose_max_batch(BATCHED, {1: 5.0, 8: 6.0, 64: 12.0}) == 64


def test_how_busy_the_machine_was_changes_nothing():
    assert choose_max_batch(BATCHED, {1: 1.2, 2: 6.8, 4: 1.9, 8: 90.7, 16: 1.8, 64: 700.0}) == 64


def test_a_pass_longer_than_any_caller_waits_is_too_large():
    assert choose_max_batch(BATCHED, {1: 500.0, 8: 4000.0, 16: 8000.0}) == 8


def test_a_slow_program_still_runs_alone():
    assert choose_max_batch(BATCHED, {1: 50_000.0, 2: 90_000.0}) == 1


def test_what_is_not_batched_stays_so():
    assert choose_max_batch(Signature(inputs=[], outputs=[]), {1: 1.0}) == 0


@given(st.dictionaries(st.integers(1, 512), st.floats(0.001, 50_000), min_size=1))
def test_the_choice_was_measured_and_is_quick_enough_or_one(latency_ms):
    chosen = choose_max_batch(BATCHED, latency_ms)
    assert chosen == 1 or latency_ms[chosen] <= MAX_PASS_MS


@pytest.fixture
def lines():
    ours, theirs = socket.socketpair()
    spec = ValidationSpec("run", 3, "m", 1, "d", "data", [], {})
    checklist = Checklist(spec, Control(theirs.detach()))

    def said():
        ours.setblocking(False)
        decoder = Decoder(FromChild)
        return [message.seen for message, _ in decoder.feed(ours.recv(1 << 20))]

    yield checklist, said
    ours.close()


def test_each_line_is_reported_when_it_starts_and_when_it_ends(lines):
    checklist, said = lines
    with checklist.step("files") as step:
        step.note("2 files")
    with checklist.step("convert") as step:
        step.skip("nothing to do")
    checklist.ready()
    seen = said()
    assert [[(c.name, c.state) for c in one.checks] for one in seen] == [
        [("files", "running")],
        [("files", "passed")],
        [("files", "passed"), ("convert", "running")],
        [("files", "passed"), ("convert", "skipped")],
        [("files", "passed"), ("convert", "skipped")],
    ]
    assert [one.state for one in seen] == ["running"] * 4 + ["ready"]
    assert seen[-1].checks[0].message == "2 files"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Rejected("it is bad", remedy="make it good"), "it is bad"),
        (OutOfMemory(), "memory"),
        (RuntimeError("cannot\nat all"), "RuntimeError: cannot"),
        (SystemExit(3), "SystemExit"),
    ],
)
def test_a_failing_line_carries_cause_and_remedy_and_the_rest_is_skipped(lines, error, reason):
    checklist, said = lines
    with pytest.raises(type(error)), checklist.step("load"):
        raise error
    checklist.reject(error)
    last = said()[-1]
    failed = next(check for check in last.checks if check.state == "failed")
    assert (failed.name, last.state) == ("load", "rejected")
    assert reason in last.reason == failed.message
    assert last.remedy == failed.remedy != ""
    assert "\n" not in last.reason
    assert {check.name for check in last.checks} == set(STEPS)
    assert msgspec.to_builtins(last)
