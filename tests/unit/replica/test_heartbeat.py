"""What a heartbeat says beside being one: memory of the device, and programs compiled while callers waited."""

import logging
from types import SimpleNamespace

from inference.replica.heartbeat import Meter
from inference.runtime.runner import Runner


def test_programs_compiled_after_ready_are_counted_and_logged_once(caplog):
    model = SimpleNamespace(compiles=4, signature=None)
    runner = Runner(model)
    runner.mark_ready()
    meter = Meter(runner, "cpu")
    with caplog.at_level(logging.WARNING):
        assert meter.compiles() == 0
        model.compiles = 6
        assert meter.compiles() == meter.compiles() == 2
    assert [record.getMessage() for record in caplog.records] == [
        "2 programs were compiled after ready: callers waited for them"
    ]


def test_a_model_that_counts_its_device_memory_is_believed_and_others_hold_none():
    assert Meter(Runner(SimpleNamespace(device_memory_bytes=5, signature=None)), "cuda:0").device_memory_bytes() == 5
    assert Meter(Runner(SimpleNamespace(signature=None)), "cpu").device_memory_bytes() == 0
