"""The trip of tests/journeys/test_devices.py on a real GPU: answers as on the CPU, memory as the driver tells it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import device_trips as trips
from tests.support.house import House, running_house, until

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with running_house(tmp_path_factory.mktemp("cuda")) as running:
        until("devices are reported", lambda: running.ok("GET", "/api/hosts/")["results"], 60)
        yield running


def test_the_drivers_memory_is_in_the_hosts_api(house: House) -> None:
    from inference.host import devices

    told = {device.name: device for device in devices.cuda().devices}
    shown = trips.devices(house)
    for name, device in told.items():
        assert shown[name]["memory_total_bytes"] == device.memory_total_bytes > 0
        assert 0 < shown[name]["memory_free_bytes"] <= device.memory_total_bytes
        assert shown[name]["description"] == device.description != "fake device for tests"


@pytest.mark.parametrize("what", ["torch", "jax"])
def test_a_model_answers_on_the_gpu_as_on_the_cpu(house: House, tmp_path: Path, what: str) -> None:
    before = trips.devices(house)["cuda:0"]["memory_free_bytes"]
    (row,) = trips.serve(house, tmp_path, what, device="cuda:0", atol=1e-3)
    assert row["device"] == "cuda:0"
    assert "here cuda:0" in trips.log_of(house, row)
    assert 0 < row["device_memory_share"] <= 1
    assert row["compiles_after_ready"] == 0

    def holds() -> int:
        return int(house.ready_replicas(f"{what}-on-cuda-0")[0]["device_memory_bytes"])

    until("the replica's memory is told", holds, 30)
    until("less is free", lambda: trips.devices(house)["cuda:0"]["memory_free_bytes"] < before, 30)
    house.scale(f"{what}-on-cuda-0", 1, 0)


def test_two_replicas_share_one_gpu(house: House, tmp_path: Path) -> None:
    rows = trips.serve(house, tmp_path, "torch", device="cuda:0", replicas=2, atol=1e-3)
    assert {row["device"] for row in rows} == {"cuda:0"}
    house.scale("torch-on-cuda-0", 1, 0)
