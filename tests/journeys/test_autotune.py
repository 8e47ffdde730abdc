"""autotune on the real platform: real versions, real replicas, through the real gateway."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.journeys.conftest import ECHO_BODY, write_echo
from tests.support.house import House

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("house")]


def test_it_finds_the_larger_batch_and_leaves_nothing_but_the_advised_version(house: House, tmp_path: Path) -> None:
    # A pass costs 20 ms whatever its size, so batches of 16 must do several times as much as batches of one.
    version = house.upload("tuned", write_echo(tmp_path / "model", sleep_ms=20))
    house.deploy("tuned", version["number"])
    house.serves("tuned", ECHO_BODY)
    done = house.cli(
        "autotune", "tuned", "--max-batch-sizes", "1,16", "--windows-ms", "2", "--connections", "16", "--seconds", "1.5",
        "--report", str(tmp_path / "report"), "--json",
    )  # fmt: skip
    found = json.loads(done.stdout)
    one, sixteen = found["candidates"]
    assert (one["closed"]["errors"], sixteen["closed"]["errors"]) == (0, 0)
    assert sixteen["closed"]["requests_per_s"] > 2 * one["closed"]["requests_per_s"]
    assert found["advised"]["settings"] == {"max_batch_size": 16, "window_ms": 2.0}
    page = Path(found["report"]).read_text()
    assert f"serinus deploy tuned:{found['advised']['version']}" in page
    assert "--set 'max_batch_size=16'" in page
    ET.fromstring((tmp_path / "report" / "plot.svg").read_text())
    names = {row["name"] for row in house.ok("GET", "/api/endpoints/")["results"]}
    assert "tuned" in names
    assert "tuned-autotune" not in names
    states = {row["number"]: row["status"] for row in house.ok("GET", "/api/models/tuned/versions/")["results"]}
    assert states[one["version"]] == "archived"
    assert states[sixteen["version"]] == "ready"
    house.ok("DELETE", "/api/endpoints/tuned/")
