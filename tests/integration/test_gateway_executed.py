"""What must not be run is not run, counted at a real model: requests whose time is up, by whichever door they came and
however they were told, and requests whose clients have left; and one that raises fails alone (rows 18, 21 and 42).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from websockets.sync.client import connect

from tests.support.counting import BARE, EXIT, INTERRUPT, RAISE, Counted, body
from tests.support.gateway_house import until

AUTH = {"authorization": "Bearer ser_all.s2"}
SOON_MS = 150
fresh = itertools.count(1)


@pytest.fixture(scope="module")
def house() -> Iterator[Counted]:
    with tempfile.TemporaryDirectory(prefix="run-") as name:
        found = Counted(Path(name))
        yield found
        assert "Traceback" not in found.gateway.log.read_text()
        found.close()


def rest_header(house: Counted, value: float) -> str:
    return house.ask(value, **{"X-Request-Timeout-Ms": str(SOON_MS)}).headers["x-error-code"]


def rest_parameter(house: Counted, value: float) -> str:
    asked = body(value, parameters={"timeout": SOON_MS * 1000})
    return house.gateway.post("/v2/models/counting/infer", json=asked).headers["x-error-code"]


def by_grpc(house: Counted, value: float, headers: dict[str, str] | None = None, **more: float) -> str:
    given = triton.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(np.array([[value, 0]], np.float32))
    with triton.InferenceServerClient(house.gateway.grpc_address) as client:
        try:
            client.infer("counting", [given], headers=AUTH | (headers or {}), **more)
        except triton.InferenceServerException as error:
            return str(error.status()).rpartition(".")[2].lower()
    return "answered"


def grpc_deadline(house: Counted, value: float) -> str:
    return by_grpc(house, value, client_timeout=SOON_MS / 1e3)


def grpc_metadata(house: Counted, value: float) -> str:
    return by_grpc(house, value, {"x-request-timeout-ms": str(SOON_MS)})


def grpc_parameter(house: Counted, value: float) -> str:
    return by_grpc(house, value, timeout=SOON_MS * 1000)


def stream_of(house: Counted, **headers: str) -> connect:
    url = f"ws://127.0.0.1:{house.gateway.port}/v2/models/counting/stream"
    return connect(url, additional_headers=AUTH | headers, compression=None)


def websocket_parameter(house: Counted, value: float) -> str:
    with stream_of(house) as stream:
        stream.send(json.dumps(body(value, id="1", parameters={"timeout": SOON_MS * 1000})))
        return str(json.loads(stream.recv(30)).get("code"))


def websocket_handshake(house: Counted, value: float) -> str:
    with stream_of(house, **{"X-Request-Timeout-Ms": str(SOON_MS)}) as stream:
        stream.send(json.dumps(body(value, id="1")))
        return str(json.loads(stream.recv(30)).get("code"))


DOORS = [
    rest_header, rest_parameter, grpc_deadline, grpc_metadata, grpc_parameter, websocket_parameter, websocket_handshake,
]  # fmt: skip


def test_nothing_is_run_after_its_deadline_whichever_door_it_came_by(house: Counted) -> None:
    doomed = {next(fresh): door for door in DOORS}
    staying = next(fresh)
    with ThreadPoolExecutor(len(DOORS) + 1) as pool:
        with house.busy(next(fresh)) as passing:
            stays = pool.submit(house.ask, staying)
            told = {value: pool.submit(door, house, value) for value, door in doomed.items()}
            said = {doomed[value].__name__: one.result(30) for value, one in told.items()}
            assert said == {door.__name__: "deadline_exceeded" for door in DOORS}
            assert not passing.done(), "they were told while the model was still busy"
            assert not stays.done()
        assert stays.result(30).json()["outputs"][0]["data"] == [staying]
    assert {doomed[value].__name__: house.runs(value) for value in doomed} == {door.__name__: 0 for door in DOORS}
    assert house.runs(staying) == 1


def test_a_replica_that_was_stopped_runs_nothing_whose_time_is_up_when_it_goes_on(house: Counted) -> None:
    """What was said to it meanwhile lies in its socket: requests, and that their callers have given them up."""
    doomed, staying = [next(fresh) for _ in range(5)], next(fresh)
    os.kill(house.replica.process.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(len(doomed)) as pool:
            said = list(pool.map(lambda value: rest_header(house, value), doomed))
    finally:
        os.kill(house.replica.process.pid, signal.SIGCONT)
    assert said == ["deadline_exceeded"] * len(doomed)
    assert house.ask(staying).status_code == 200
    assert [house.runs(value) for value in doomed] == [0] * len(doomed)


# -- clients that leave -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def rest_closes(house: Counted, value: float) -> Iterator[None]:
    data = json.dumps(body(value)).encode()
    head = f"POST /v2/models/counting/infer HTTP/1.1\r\nHost: x\r\nAuthorization: {AUTH['authorization']}\r\n"
    with socket.create_connection(("127.0.0.1", house.gateway.port)) as peer:
        peer.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        yield


@contextlib.contextmanager
def websocket_closes(house: Counted, value: float) -> Iterator[None]:
    with stream_of(house) as stream:
        stream.send(json.dumps(body(value, id="1")))
        yield


@contextlib.contextmanager
def websocket_cancels(house: Counted, value: float) -> Iterator[None]:
    with stream_of(house) as stream:
        stream.send(json.dumps(body(value, id="1")))
        yield
        stream.send(json.dumps({"type": "cancel", "id": "1"}))
        assert json.loads(stream.recv(30))["code"] == "cancelled"


def _silent(result: object, error: object) -> None:
    """What comes back of a call that was cancelled is of no interest."""


@contextlib.contextmanager
def grpc_cancels(house: Counted, value: float) -> Iterator[None]:
    given = triton.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(np.array([[value, 0]], np.float32))
    with triton.InferenceServerClient(house.gateway.grpc_address) as client:
        call = client.async_infer("counting", [given], _silent, headers=AUTH)
        yield
        call.cancel()


@contextlib.contextmanager
def grpc_stream_cancels(house: Counted, value: float) -> Iterator[None]:
    given = triton.InferInput("x", [1, 2], "FP32")
    given.set_data_from_numpy(np.array([[value, 0]], np.float32))
    with triton.InferenceServerClient(house.gateway.grpc_address) as client:
        client.start_stream(_silent, headers=AUTH)
        client.async_stream_infer("counting", [given])
        yield
        client.stop_stream(cancel_requests=True)


LEAVERS: list[Callable[[Counted, float], contextlib.AbstractContextManager[None]]] = [
    rest_closes, websocket_closes, websocket_cancels, grpc_cancels, grpc_stream_cancels,
]  # fmt: skip


def test_row_18_what_its_client_left_behind_is_dropped_before_the_batch_forms(house: Counted) -> None:
    """Twice at each door, and beside each a client that stays: those are run, once each."""
    gone = {next(fresh): leaver for leaver in LEAVERS * 2}
    staying = [next(fresh) for _ in range(4)]
    with ThreadPoolExecutor(len(staying)) as pool:
        with house.busy(next(fresh)):
            with contextlib.ExitStack() as stack:
                for value, leaver in gone.items():
                    stack.enter_context(leaver(house, value))
                stays = [pool.submit(house.ask, value) for value in staying]
                until(lambda: house.under_way() == 1 + len(gone) + len(staying), 20)
            until(lambda: house.under_way() == 1 + len(staying), 20)
            assert not any(one.done() for one in stays)
        assert [one.result(30).json()["outputs"][0]["data"] for one in stays] == [[value] for value in staying]
    assert [(leaver.__name__, house.runs(value)) for value, leaver in gone.items()] == [
        (leaver.__name__, 0) for leaver in gone.values()
    ]
    assert [house.runs(value) for value in staying] == [1] * len(staying)
    assert house.under_way() == 0


# -- a request that raises --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RAISE, EXIT, INTERRUPT, BARE], ids=["error", "exit", "interrupt", "base_exception"])
def test_rows_21_and_42_whatever_one_of_eight_raises_fails_it_alone_and_typed(house: Counted, kind: int) -> None:
    pid, values = house.replica.process.pid, [next(fresh) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        with house.busy(next(fresh)):
            asked = [pool.submit(house.ask, value, kind if number == 3 else 0) for number, value in enumerate(values)]
            until(lambda: house.under_way() == 9, 20)  # so they run together
        found = [one.result(30) for one in asked]
    assert [one.status_code for one in found] == [200] * 3 + [422] + [200] * 4, [one.text for one in found]
    assert found[3].headers["x-error-code"] == "poison_input"
    assert [one.json()["outputs"][0]["data"] for one in found if one.status_code == 200] == [
        [value] for number, value in enumerate(values) if number != 3
    ]
    assert house.runs(values[0]) > 1, "they were one batch, which was halved until the one was found"
    assert (house.replica.process.poll(), house.replica.process.pid) == (None, pid)
