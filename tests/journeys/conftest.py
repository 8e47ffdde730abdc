"""One real platform for all journeys; a journey leaves it as it found it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.house import House, running_house

ECHO_BODY = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


logging.getLogger("httpx").setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with running_house(tmp_path_factory.mktemp("house")) as running:
        yield running


def write_echo(folder: Path, **plan: Any) -> Path:
    """An echo model's folder: output = input * factor, with the faults that `plan` asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "echo.json").write_text(json.dumps({"sleep_ms": 5, **plan}))
    return folder


@pytest.fixture(scope="session")
def echo(house: House, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Endpoint `echo` with one replica of a model that doubles its input in about 5 ms."""
    version = house.upload("echo", write_echo(tmp_path_factory.mktemp("echo") / "model", factor=2.0))
    house.deploy("echo", version["number"])
    house.serves("echo", ECHO_BODY)
    return "echo"
