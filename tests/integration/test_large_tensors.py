"""Large tensors through a real gateway and a real replica in its sandbox: in lent blocks, or through the socket."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.support.gateway_house import until
from tests.support.large_tensors import FATAL, MIB, blocks_of, body, placed, values


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="big-") as name:
        yield Path(name)


def test_every_byte_comes_back_in_every_size(folder: Path) -> None:
    with placed(folder) as place:
        for seed, size in enumerate([8, 65_536, MIB // 4, MIB, MIB, 3 * MIB, 16 * MIB, 16 * MIB, 800, MIB, 40 * MIB]):
            place.ask(size, seed)
        assert {16 * MIB + MIB // 4, 16 * MIB} & place.mapped()


def test_many_at_once_get_each_their_own_from_two_replicas(folder: Path) -> None:
    with placed(folder, 2) as place, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: place.ask(MIB + 8 * seed, seed), range(64)))
        assert all(blocks_of(one.process.pid) for one in place.replicas)


def test_a_model_with_a_cache_is_lent_nothing(folder: Path) -> None:
    with placed(folder, response_cache_bytes=8 * MIB) as place:
        for seed in (1, 2, 1, 2):
            place.ask(MIB, seed)
        assert place.mapped() == set()


def test_a_fault_costs_its_block_and_nobody_elses_answer(folder: Path) -> None:
    with placed(folder) as place, ThreadPoolExecutor(4) as pool:

        def one(seed: int) -> None:
            if seed % 4:
                place.ask(MIB, seed)
                return
            assert place.post(np.full((1, 1 << 17), FATAL, np.float32), values(MIB // 2, seed))[0] >= 400

        list(pool.map(one, range(40)))
        place.ask(MIB, 99)
        assert place.alive()


def test_clients_that_leave_take_nobodys_tensors_along(folder: Path) -> None:
    with placed(folder) as place:
        data, headers = body(values(MIB, 1), values(MIB, 2))
        head = f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        stop = threading.Event()

        def leave() -> None:
            part = 0
            while not stop.wait(0.02):
                part = (part + 700_001) % (len(data) + 1)
                with socket.create_connection(("127.0.0.1", place.gateway.port)) as peer:
                    peer.sendall(head.encode() + data[: part or len(data)])

        leaver = threading.Thread(target=leave)
        leaver.start()
        try:
            for seed in range(30):
                place.ask(2 * MIB, seed)
        finally:
            stop.set()
            leaver.join()
        assert place.alive()


def test_small_requests_beside_large_ones_are_answered_in_order_of_their_own(folder: Path) -> None:
    with placed(folder) as place, ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda seed: place.ask(MIB * (seed % 5) or 64, seed), range(60)))


def test_a_replica_that_dies_with_a_large_request_under_way_costs_no_answer(folder: Path) -> None:
    with placed(folder, 2) as place:
        for seed in range(4):
            place.ask(4 * MIB, seed)
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(place.ask, 4 * MIB, seed) for seed in range(24)]
            os.kill(place.replicas[0].process.pid, signal.SIGKILL)
            for one in asked:
                one.result(60)


def test_blocks_that_nobody_uses_any_more_are_given_back(folder: Path) -> None:
    with placed(folder) as place:
        place.ask(8 * MIB, 1)
        place.ask(8 * MIB, 2)
        assert place.mapped()
        until(lambda: not place.mapped() and not blocks_of(place.gateway.process.pid), 20)
        place.ask(8 * MIB, 3)


LIMIT_BYTES = 64 * MIB


def peak_bytes(pid: int) -> int:
    """The most that a process has held at once so far, lent blocks included."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def whole(size: int) -> tuple[bytes, dict[str, str]]:
    """A request whose body has exactly `size` bytes: two tensors, and spaces behind their JSON."""
    tensors = [np.ones((1, (size - 4096) // 8), np.float32)] * 2
    data, headers = body(*tensors)
    split = int(headers["Inference-Header-Content-Length"])
    pad = size - len(data)
    headers["Inference-Header-Content-Length"] = str(split + pad)
    return data[:split] + b" " * pad + data[split:], headers


def test_a_body_of_64_mib_passes_in_bounded_memory_and_one_byte_more_is_refused(folder: Path) -> None:
    with placed(folder) as place:
        place.ask(64, 1)
        before = peak_bytes(place.gateway.process.pid)
        for _ in range(3):
            data, headers = whole(LIMIT_BYTES)
            status, split, found = place.send(data, headers)
            assert status == 200, found[:300]
            assert len(found) - split == 8 * ((LIMIT_BYTES - 4096) // 8)
            assert (np.frombuffer(found[split:], "<f4") == 2).all()
        # what comes in and what goes out, once each, however often
        assert peak_bytes(place.gateway.process.pid) - before < 2 * LIMIT_BYTES + 16 * MIB
        status, _, found = place.send(*whole(LIMIT_BYTES + 1))
        assert status == 413, found[:300]
