"""The trip of tests/journeys/test_devices.py on a real TPU: a JAX program on a chip of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import device_trips as trips
from tests.support.house import House, running_house, until

pytestmark = [pytest.mark.tpu, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with running_house(tmp_path_factory.mktemp("tpu")) as running:
        until("devices are reported", lambda: running.ok("GET", "/api/hosts/")["results"], 60)
        yield running


def test_a_program_answers_on_a_chip_as_on_the_cpu(house: House, tmp_path: Path) -> None:
    # The matrix unit multiplies in bfloat16 by default.
    (row,) = trips.serve(house, tmp_path, "jax", device="tpu", atol=2e-2)
    assert row["device"] == "tpu:0"
    assert "here tpu:0" in trips.log_of(house, row)
    assert row["compiles_after_ready"] == 0
    house.scale("jax-on-tpu", 1, 0)
