"""A tiny real language model behind a real gateway: the replica is a process with the engine in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from inference.protocol.generation import language_signature
from inference.protocol.routes import ReplicaRoute, VariantRoute
from tests.support.gateway_house import House
from tests.support.openai_house import KEY
from tests.support.replica_process import Replica


@contextlib.contextmanager
def served(root: Path, settings: dict[str, Any]) -> Iterator[House]:
    """The Hugging Face folder root/m as endpoint "mlp", with a version's settings, until the block ends."""
    house, replica = House(), Replica(root / "r", root / "m", "hf_decoder", settings)
    try:
        route = ReplicaRoute("r1", 1, f"unix:{replica.ready().path}")
        house.publish(house.table([VariantRoute(1, "primary", 10_000, language_signature(), [route])]))
        house.gateway().wait_live().wait_ready()
        yield house
    finally:
        house.close()
        replica.close()


def doors():
    """`gateway, client = doors()` in a test module that has a `house`: its gateway, and OpenAI's client of it."""

    @pytest.fixture
    def gateway(house):
        return house.gateways[0]

    @pytest.fixture
    def client(gateway):
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as found:
            yield found

    return gateway, client
