"""Devices through the real platform on a machine that has none: fake ones are found, shown, placed on and shared out
like real ones, and what computes is the CPU.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import device_trips as trips
from tests.support.house import House, running_house, until

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("devices")]
GIB = 1 << 30


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with running_house(tmp_path_factory.mktemp("fakes"), SERINUS_FAKE_DEVICES="cuda:2,tpu:4") as running:
        until("devices are reported", lambda: running.ok("GET", "/api/hosts/")["results"], 60)
        yield running


def test_the_hosts_api_and_the_page_show_every_device_with_its_memory(fakes: House) -> None:
    found = trips.devices(fakes)
    assert list(found) == ["cpu", "cuda:0", "cuda:1", "tpu:0", "tpu:1", "tpu:2", "tpu:3"]
    cpu = found.pop("cpu")
    assert 0 < cpu["memory_free_bytes"] < cpu["memory_total_bytes"]
    assert {(d["memory_total_bytes"], d["memory_free_bytes"]) for d in found.values()} == {(16 * GIB, 16 * GIB)}
    html = trips.page(fakes, "/fleet/")
    for name in ("cpu", *found):
        assert f'<b class="mono">{name}</b>' in html
    assert html.count("fake device for tests") == 6
    assert html.count("0 B of 16.0 GB") == 6


@pytest.mark.parametrize("what", ["torch", "jax"])
def test_two_replicas_spread_over_two_devices_and_answer(fakes: House, tmp_path: Path, what: str) -> None:
    rows = trips.serve(fakes, tmp_path, what, device="cuda", replicas=2)
    assert sorted(row["device"] for row in rows) == ["cuda:0", "cuda:1"]
    for row in rows:
        assert row["device_memory_share"] == 0.0625, "1 GiB of 16"
        assert f"device: {row['device']}, here cpu; memory share 0.0625" in trips.log_of(fakes, row)
    time.sleep(1.2)  # a heartbeat after the answers
    mine = [seen for seen in fakes.seen() if seen.id in {row["id"] for row in rows}]
    assert [seen.compiles_after_ready for seen in mine] == [0, 0]
    assert "may take 6.2 % of cuda:0" in trips.page(fakes, "/fleet/")
    line = 'serinus_device_memory_bytes{device="%s",endpoint="%s-on-cuda",version="1"}'
    told = lambda: httpx.get(f"{fakes.gateway_url}/metrics", headers={"Authorization": f"Bearer {fakes.key}"}).text  # noqa: E731
    until(
        "replicas tell of their devices",
        lambda: all(line % (name, what) in told() for name in ("cpu", "cuda:0", "cuda:1")),
    )
    fakes.scale(f"{what}-on-cuda", 1, 0)


def test_one_device_takes_as_many_replicas_as_their_shares_fit(fakes: House, tmp_path: Path) -> None:
    rows = trips.serve(fakes, tmp_path, "torch", device="cuda:1", replicas=3)
    assert Counter(row["device"] for row in rows) == {"cuda:1": 3}
    fakes.scale("torch-on-cuda-1", 1, 11)
    wish = until(
        "the shortfall is explained", lambda: (row := trips.deployment(fakes, "torch-on-cuda-1"))["reason"] and row, 30
    )
    assert wish["reason"] == "not enough memory: needs 1.5 GiB, best cuda has 1.0 GiB"
    assert len([row for row in fakes.replicas() if row["device"] == "cuda:1" and row["wanted"] == "run"]) == 10
    fakes.scale("torch-on-cuda-1", 1, 0)


def test_a_program_for_a_tpu_takes_a_chip_of_its_own(fakes: House, tmp_path: Path) -> None:
    (row,) = trips.serve(fakes, tmp_path, "jax", device="any")
    assert row["device"].startswith("tpu:"), "JAX programs prefer a TPU"
    _, second = trips.upload(fakes, tmp_path, "jax", "second")
    fakes.ok(
        "POST", "/api/endpoints/", {"name": "second", "model": "second", "version": second["number"], "replicas": 1, "device": row["device"]},
    )  # fmt: skip
    until("it waits", lambda: "is taken" in trips.deployment(fakes, "second")["reason"], 30)
    fakes.scale("jax-on-any", 1, 0)
    until("the chip is handed on", lambda: fakes.ready_replicas("second"), 60)
    fakes.scale("second", 1, 0)


def test_a_program_for_the_cpu_only_waits_and_says_why(fakes: House, tmp_path: Path) -> None:
    _, version = trips.upload(fakes, tmp_path, "jax", "cpu-only", platforms=["cpu"])
    wish = {"name": "cpu-only", "model": "cpu-only", "version": version["number"], "replicas": 1, "device": "cuda"}
    fakes.ok("POST", "/api/endpoints/", wish)
    words = "wants cuda, but this version runs on cpu only"
    until("the reason is told", lambda: trips.deployment(fakes, "cpu-only")["reason"] == words, 30)
    assert words in trips.page(fakes, "/fleet/")
    checks = {check["name"]: check["message"] for check in version["report"]["checks"]}
    assert "on cpu" in checks["load"], "validation needs no accelerator"
    fakes.ok("POST", "/api/deployments/", {"model": "cpu-only", "version": 1, "replicas": 1, "device": "cpu"})
    until("it runs where it can", lambda: fakes.ready_replicas("cpu-only"), 60)
    assert fakes.ready_replicas("cpu-only")[0]["device"] == "cpu"
    fakes.scale("cpu-only", 1, 0)


def test_a_restart_on_a_device_ends_the_old_process_before_the_new_one_begins(fakes: House, tmp_path: Path) -> None:
    (before,) = trips.serve(fakes, tmp_path, "torch", device="cuda:0")
    fakes.ok("POST", f"/api/replicas/{before['id']}/restart/")
    generations: list[int] = []

    def again() -> bool:
        seen = [one for one in fakes.seen() if one.id == before["id"] and one.pid]
        generations.append(len(seen))
        return any(one.generation > before["generation"] and one.phase == "ready" for one in seen)

    until("the next generation is ready", again, 60, 0.01)
    assert max(generations) == 1, "two processes held one accelerator"
    fakes.scale("torch-on-cuda-0", 1, 0)
