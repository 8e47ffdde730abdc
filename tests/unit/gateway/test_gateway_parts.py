"""Telemetry, the table, the addresses, the words of errors."""

import asyncio

import msgspec
import pytest

from inference.errors import (
    BY_CODE,
    InvalidInput,
    ModelFailed,
    NotFound,
    SerinusError,
    by_code,
)
from inference.gateway import app, problems
from inference.gateway.connections import Pool
from inference.gateway.replica_wire import fault_error
from inference.gateway.table import Table
from inference.gateway.telemetry import BUFFER_MAXLEN, Telemetry
from inference.protocol import routes
from inference.protocol.messages import Answer, Fault
from inference.protocol.routes import EndpointRoute, RoutingTable
from inference.protocol.samples import Sample
from tests.support.gateway_doors import doors_of_the_gateway


def table_bytes(generation, *names):
    endpoints = [EndpointRoute(name, name, "s", False, 1000, 10) for name in names]
    return routes.encode(RoutingTable(generation=generation, endpoints=endpoints))


@pytest.fixture
def table(tmp_path):
    return lambda: Table(Pool(), tmp_path / "gateway" / "routes.json")


async def test_a_table_goes_forward_only(table):
    one = table()
    assert one.accept(table_bytes(5, "a"))
    for data in (table_bytes(5, "b"), table_bytes(4, "b"), b"", b"{", b"null", b'{"generation":"x"}', b"\xff"):
        assert not one.accept(data)
    assert list(one.now.endpoints) == ["a"]
    assert one.accept(table_bytes(6, "b"))
    assert list(one.now.endpoints) == ["b"]


async def test_a_queue_outlives_the_table_it_came_with(table):
    one = table()
    one.accept(table_bytes(1, "a"))
    queue = one.now.endpoints["a"].queue
    queue.enter(10)
    one.accept(table_bytes(2, "a", "b"))
    assert one.now.endpoints["a"].queue is queue


async def test_the_last_table_is_loaded_from_disk(table, tmp_path):
    one = table()
    one.accept(table_bytes(3, "a"))
    keeping = asyncio.create_task(one.run(None))
    path = tmp_path / "gateway" / "routes.json"
    while not path.exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    keeping.cancel()
    two = table()
    two.load()
    assert two.now.generation == 3
    assert [entry.name for entry in path.parent.iterdir()] == ["routes.json"]
    path.write_bytes(b"broken")
    three = table()
    three.load()
    assert three.now.generation == -1


def test_sums_become_numbered_samples():
    telemetry = Telemetry("g")
    for ms in (1.0, 2.0, 400.0):
        telemetry.answered(("e", 1, "primary"), ms, Answer(1, [], 8, 1_000_000, 2_000_000), 0)
    telemetry.failed(("e", 1, "primary"), 5.0, ModelFailed(), 1)
    telemetry.failed(("e", 1, "primary"), 5.0, InvalidInput(), 0)
    telemetry.close_bin(1000)
    telemetry.answered(("e", 2, "canary"), 1.0, Answer(1, [], 1, 0, 0), 0)
    telemetry.close_bin(1001)
    one, two = (msgspec.msgpack.decode(data, type=Sample) for data in telemetry.waiting)
    assert (one.source, one.sequence, two.sequence, one.at_unix_s) == ("g", 1, 2, 1000)
    assert (one.requests, one.errors, one.retries, one.batch_sum) == (5, 1, 1, 24)
    assert (one.latency_sum_ms, one.queue_sum_ms, one.compute_sum_ms) == (413.0, 3.0, 6.0)
    assert one.error_counts == {"model_failed": 1, "invalid_input": 1}
    assert sum(one.latency_counts.values()) == 5
    assert {key: sums.requests for key, sums in telemetry.totals()} == {("e", 1, "primary"): 5, ("e", 2, "canary"): 1}
    telemetry.close_bin(1002)
    assert len(telemetry.waiting) == 2


def test_samples_wait_in_a_bounded_buffer():
    telemetry = Telemetry("g")
    for second in range(BUFFER_MAXLEN + 5):
        telemetry.failed(("e", 1, "a"), 1.0, ModelFailed(), 0)
        telemetry.close_bin(second)
    assert len(telemetry.waiting) == BUFFER_MAXLEN


def test_every_error_code_has_a_status():
    assert set(problems.STATUSES) >= set(BY_CODE)
    for code in BY_CODE:
        cls = by_code(code)
        error = SerinusError() if code == "rejected" else cls()
        names = [name for name, _ in problems.headers_of(error)]
        assert (b"retry-after" in names) == (error.retryable or code == "deadline_exceeded")


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/v2/models/a.b-c_1/infer", ("infer", "a.b-c_1", None)),
        ("/v2/models/a/versions/12/infer", ("infer", "a", 12)),
        ("/v2/models/a/versions/12", ("model", "a", 12)),
        ("/v2/models/a/ready", ("ready", "a", None)),
        ("/v2/health/live", ("/v2/health/live", "", None)),
        ("/x/7", ("x", "", None)),
    ],
)
def test_paths_are_parsed(table_of_doors, path, place):
    found = table_of_doors.find(path)
    assert (found.what, found.name, found.number) == place


@pytest.mark.parametrize(
    "path",
    ["", "/v2/models/", "/v2/models/../x", "/v2/models/a\0", "/v2/models/a/versions/", "/v2/models/" + "a" * 129,
     "/v2/models/a/versions/-1", "/v2/models/a/versions/1/versions/2", "/v2/models/a\n", "/x/y"],
)  # fmt: skip
def test_strange_paths_are_not_found(table_of_doors, path):
    with pytest.raises(NotFound, match=r"^Not Found$"):
        table_of_doors.find(path)


@pytest.mark.parametrize("name", ["é", ".hidden", "a%20b", "a b"])
@pytest.mark.parametrize("rest", ["", "/infer", "/versions/1/ready"])
def test_a_name_that_no_model_can_have_is_said_to_be_unknown(table_of_doors, name, rest):
    with pytest.raises(NotFound, match=r"^Request for unknown model: '"):
        table_of_doors.find(f"/v2/models/{name}{rest}")


@pytest.fixture
def table_of_doors():
    found = doors_of_the_gateway()
    found.pattern("x", r"/x/([0-9]+)", app.GET, None)
    return found


@pytest.mark.parametrize("code", [*BY_CODE, "from the future"])
def test_a_fault_never_tells_where_the_replica_lives(code):
    error = fault_error(Fault(1, code, "cannot open /srv/serinus/run/r1.sock of 12"))
    assert "/srv" not in error.message
    assert isinstance(error, SerinusError)
