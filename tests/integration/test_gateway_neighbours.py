"""Row 38 of the fault matrix, as structure: whoever floods an endpoint stands in the way of nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from inference.protocol.routes import EndpointRoute, VariantRoute
from tests.support.gateway_house import MLP, Gateway, House, key, request, until

LIMIT = 32


@pytest.fixture
def house() -> Iterator[House]:
    """Endpoints `mlp`, with room for LIMIT requests, and `other`, each with a replica of its own."""
    found = House()
    found.replica("r1")
    found.replica("other")
    other = VariantRoute(1, "primary", 10_000, MLP, [found.route("other")])
    table = found.table(
        queue_limit=LIMIT, timeout_ms=60_000,
        keys=[key("all", "s2", ["*"]), key("one", "s1", ["mlp"])],
        endpoints=[EndpointRoute("other", "m", "salt", False, 2000, LIMIT, [other])],
    )  # fmt: skip
    found.publish(table)
    gateway = found.gateway().wait_live().wait_ready()
    gateway.wait_ready("other")
    yield found
    found.close()


class Flood:
    """As many requests with one key as `mlp` takes, none of which its replica answers before it is told to."""

    def __init__(self, house: House, pool: ThreadPoolExecutor) -> None:
        self.replica, gateway = house.replicas["r1"], house.gateways[0]
        self.replica.holds = True
        self.asked: list[Future[httpx.Response]] = [pool.submit(gateway.post) for _ in range(3 * LIMIT)]
        until(lambda: sum(one.done() for one in self.asked) + len(self.replica.held) == len(self.asked), 30)
        self.under_way = len(self.replica.held)

    def end(self, house: House) -> list[int]:
        """Lets the replica answer; the statuses of all."""
        house.loop.call_soon_threadsafe(self.replica.let_go)
        return [one.result(30).status_code for one in self.asked]


def answers(gateway: Gateway, endpoint: str, secret: str) -> int:
    return gateway.post(f"/v2/models/{endpoint}/infer", secret, json=request()).status_code


def test_row_38_a_saturated_model_keeps_nobody_from_another_one(house: House) -> None:
    gateway = house.gateways[0]
    with ThreadPoolExecutor(3 * LIMIT) as pool:
        flood = Flood(house, pool)
        assert 1 <= flood.under_way <= LIMIT
        # the very key that floods `mlp`: each answered while all of those still wait, so none stood behind them
        assert [answers(gateway, "other", "ser_all.s2") for _ in range(20)] == [200] * 20
        assert len(flood.replica.held) == flood.under_way
        assert answers(gateway, "mlp", "ser_all.s2") == 503
        statuses = flood.end(house)
    assert statuses.count(200) == flood.under_way
    assert statuses.count(503) == len(statuses) - flood.under_way


def test_row_38_a_key_that_floods_a_model_leaves_room_for_another_key(house: House) -> None:
    gateway = house.gateways[0]
    with ThreadPoolExecutor(3 * LIMIT + 1) as pool:
        flood = Flood(house, pool)
        other = pool.submit(answers, gateway, "mlp", "ser_one.s1")
        until(lambda: len(flood.replica.held) == flood.under_way + 1, 10)  # admitted, with the flood still there
        assert not other.done()
        assert answers(gateway, "mlp", "ser_all.s2") == 503
        flood.end(house)
        assert other.result(30) == 200
