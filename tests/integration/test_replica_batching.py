"""Batching settings through the real replica: its process, its socket, its sandbox."""

import time

import numpy as np

from inference.protocol.messages import Answer, Ask, Fault, Infer, TensorHeader, Told
from tests.integration.test_replica import HANG, PLAN, answers, ask, make  # noqa: F401 (make is a fixture)

ONE_AT_A_TIME = {**PLAN, "signature": {**PLAN["signature"], "max_batch_size": 1}}


def send(wire, request_id, value, **fields):
    data = np.full((1, 2), value, dtype="<f4").tobytes()
    wire.send(Infer(request_id, 10_000, [TensorHeader("input", "FP32", [1, 2], len(data))], **fields), data)


def ids(wire, count):
    """The ids of the next answers and faults, in the order in which they came."""
    found = []
    while len(found) < count:
        message, _ = wire.next()
        assert isinstance(message, Answer | Fault)
        found.append(message.id)
    return found


def test_a_higher_priority_overtakes_those_who_wait(make):  # noqa: F811
    wire = make(ONE_AT_A_TIME, priority_levels=2, default_priority_level=2).ready().connect()
    send(wire, 0, 0.0)
    time.sleep(0.015)
    for request_id, priority in ((1, 2), (2, 0), (3, 1), (4, 1)):
        send(wire, request_id, 1.0, priority=priority)
    assert ids(wire, 5) == [0, 3, 4, 1, 2]


def test_a_flood_of_one_key_does_not_keep_another_waiting(make):  # noqa: F811
    wire = make(ONE_AT_A_TIME).ready().connect()
    for request_id in range(20):
        send(wire, request_id, 1.0, key="flood")
    time.sleep(0.015)
    send(wire, 100, 1.0, key="few")
    assert ids(wire, 21).index(100) <= 4


def test_two_instances_run_side_by_side_and_the_sums_are_exact(make):  # noqa: F811
    plan = {**ONE_AT_A_TIME, "sleep_ms": 250.0}
    wire = make(plan, instances=2).ready().connect()
    began = time.monotonic()
    for request_id in range(2):
        ask(wire, request_id, 1.0)
    found = answers(wire, 2)
    assert time.monotonic() - began < 0.45
    assert all(values == [3, 3] for _, values in found.values())
    wire.send(Ask(9))
    told, _ = wire.until(lambda m: isinstance(m, Told))
    sums = told.statistics
    assert (sums.execution_count, sums.inference_count, sums.success.count, sums.queue.count) == (2, 2, 2, 2)
    assert sums.compute_infer.ns >= 2 * 250_000_000
    assert (sums.queue_depth, sums.in_flight) == (0, 0)


def test_one_hung_instance_of_two_ends_the_process(make):  # noqa: F811
    replica = make(ONE_AT_A_TIME, instances=2, hang_timeout_s=0.3).ready()
    wire = replica.connect()
    ask(wire, 1, HANG)
    ask(wire, 2, 2.0)
    found = answers(wire, 2)
    assert found[2][1] == [5, 5]
    assert found[1][0].code in {"model_failed", "replica_lost"}
    assert replica.exit_status() == 86


def test_nothing_runs_until_so_many_wait(make):  # noqa: F811
    wire = make(PLAN, delay_until=6, window_ms=0).ready().connect()
    for request_id in range(5):
        ask(wire, request_id, 1.0)
    time.sleep(0.1)
    ask(wire, 5, 1.0)
    assert {message.batch_size for message, _ in answers(wire, 6).values()} == {6}
