"""A house with services of its own elsewhere and little patience: it leaves nothing, and no upload holds it up for long."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.journeys.conftest import ECHO_BODY, write_echo
from tests.support import artifacts
from tests.support.database import embedded
from tests.support.house import House, remains, running_house

pytestmark = pytest.mark.timeout(240)
PATIENCE_S = 15


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Serves `echo`; its validations may take 15 s, so that those that never end are not waited for longer."""
    root = tmp_path_factory.mktemp("outside")
    with embedded() as services:
        given = {"DATABASE_URL": services.database_url, "REDIS_URL": services.redis_url}
        with running_house(root, **given, SERINUS_VALIDATION_TIMEOUT_S=str(PATIENCE_S)) as house:
            version = house.upload("echo", write_echo(root / "model", factor=2.0))
            house.deploy("echo", version["number"])
            house.serves("echo", ECHO_BODY)
            yield house
    assert remains(root / "data") == []


def test_outside_services_are_used(outside: House) -> None:
    names = {program["name"] for program in outside.remote().getAllProcessInfo()}
    assert names == {"host", "agent", "console", "control", "jobs", "beat", "gateway"}
    assert not (outside.data_dir / "postgres").exists()
    assert not (outside.data_dir / "valkey").exists()
    given = {name: outside.environment[name] for name in ("DATABASE_URL", "REDIS_URL")}
    assert {name: outside.services[name] for name in given} == given
    with psycopg.connect(given["DATABASE_URL"]) as connection:
        assert ("echo",) in connection.execute("SELECT name FROM registry_model").fetchall()


def rejected_for_its_time(house: House, name: str, folder: Path) -> None:
    version: dict[str, Any] = house.upload(name, folder)
    assert version["status"] == "rejected"
    assert f"longer than {PATIENCE_S} s" in version["reason"]
    assert version["remedy"]
    assert house.infer("echo", ECHO_BODY).status_code == 200


@pytest.mark.parametrize("kind", ["hang", "busy"])
def test_a_child_that_does_not_end_is_a_rejection_and_not_an_outage(outside: House, tmp_path: Path, kind: str) -> None:
    rejected_for_its_time(outside, "misbehaving", write_echo(tmp_path / "model", at_load=kind))


def test_row_23_a_compiled_program_without_an_end_is_rejected(outside: House, tmp_path: Path) -> None:
    rejected_for_its_time(outside, "endless", artifacts.endless_program(tmp_path / "m", at="any"))
