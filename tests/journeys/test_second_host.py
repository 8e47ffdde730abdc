"""A second host joins, takes over while the first one drains, and leaves again; nobody notices."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.journeys.conftest import ECHO_BODY, write_echo
from tests.support.house import REPO, House, until
from tests.support.load import Load

pytestmark = pytest.mark.timeout(180)


def hosts_of(house: House, model: str) -> list[str]:
    rows = house.ok("GET", "/api/replicas/?page_size=200")["results"]
    return [row["host"] for row in rows if row["model"] == model and row["wanted"] == "run" and row["phase"] == "ready"]


def test_replicas_move_to_a_second_host_and_back_without_a_failed_request(house: House, tmp_path: Path) -> None:
    version = house.upload("moving", write_echo(tmp_path / "m", factor=5.0))
    house.deploy("moving", version["number"])
    house.serves("moving", ECHO_BODY)
    command = [sys.executable, "-m", "serinus", "worker", "--name", "second"]
    worker = subprocess.Popen(command, env=house.environment, cwd=REPO, stderr=subprocess.DEVNULL)
    try:
        until("the second host stands by", lambda: house.api("GET", "/api/hosts/second/").status_code == 200, 60, 0.3)
        until("with everything imported", lambda: house.ok("GET", "/api/hosts/second/")["standby_ready"], 60, 0.3)
        with Load(f"{house.gateway_url}/v2/models/moving/infer", ECHO_BODY, house.key) as load:
            house.ok("POST", "/api/hosts/testhost/drain/", {})
            until("the second host serves", lambda: hosts_of(house, "moving") == ["second"], 40, 0.3)
            house.ok("POST", "/api/hosts/testhost/undrain/", {})
            house.ok("POST", "/api/hosts/second/drain/", {})
            until("the first host serves again", lambda: hosts_of(house, "moving") == ["testhost"], 40, 0.3)
        assert not load.failed, load.explain()
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
        house.api("POST", "/api/hosts/testhost/undrain/", {})
    house.scale("moving", version["number"], 0)
