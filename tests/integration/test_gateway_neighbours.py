"""Row 38 of the fault matrix, as structure: whoever floods an endpoint stands in the way of nobody else; what is too much
is shed evenly between keys, and a key's own rates are kept to the request.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import grpc
import httpx
import pytest
from websockets.sync.client import connect

from inference.gateway.grpc import wire
from inference.protocol.routes import EndpointRoute, VariantRoute
from tests.support.gateway_house import MLP, Gateway, House, free_port, key, request, until

LIMIT = 32


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """Endpoints `mlp`, with room for LIMIT requests, and `other`, each with a replica of its own."""
    found = House()
    found.replica("r1")
    found.replica("other")
    other = VariantRoute(1, "primary", 10_000, MLP, [found.route("other")])
    table = found.table(
        queue_limit=LIMIT, timeout_ms=60_000,
        keys=[
            key("all", "s2", ["*"]), key("one", "s1", ["mlp"]), key("calls", "s3", ["mlp"], requests_per_s=4.0),
            key("rows", "s4", ["mlp"], rows_per_s=4.0), key("both", "s5", ["mlp"], requests_per_s=0.5, rows_per_s=2.0),
            key("few", "s6", ["mlp"], rows_per_s=1.5),
            key("once", "s7", ["mlp"], requests_per_s=0.05),
        ],
        endpoints=[EndpointRoute("other", "m", "salt", False, 2000, LIMIT, [other])],
    )  # fmt: skip
    found.publish(table)
    gateway = found.gateway(SERINUS_GRPC_PORT=str(free_port())).wait_live().wait_ready()
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


# -- shed evenly ------------------------------------------------------------------------------------------------------


async def keeps_asking(port: int, secret: str, told: Counter[int], stop: asyncio.Event) -> None:
    """One client in a closed loop, which does not do what a refusal says."""
    body = json.dumps(request()).encode()
    head = f"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while not stop.is_set():
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(answer.split(b"content-length: ")[1].split(b"\r\n")[0]))
        told[int(answer.split()[1])] += 1
        await asyncio.sleep(0.02)
    writer.close()


async def together(house: House, clients: dict[str, int], enough: dict[str, int]) -> dict[str, Counter[int]]:
    """So many clients of each key at once, until those keys have `enough` answers; statuses by key."""
    port, replica, stop = house.gateways[0].port, house.replicas["r1"], asyncio.Event()
    told: dict[str, Counter[int]] = {secret: Counter() for secret in clients}
    replica.latency_s, end = 0.05, time.monotonic() + 60
    async with asyncio.TaskGroup() as group:
        for secret, count in clients.items():
            for _ in range(count):
                group.create_task(keeps_asking(port, secret, told[secret], stop))
        while any(told[secret][200] < count for secret, count in enough.items()):
            assert time.monotonic() < end, told
            await asyncio.sleep(0.01)
        stop.set()
    replica.latency_s = 0.0
    return told


async def test_a_key_that_asks_little_is_never_shed_while_another_one_is(house: House) -> None:
    told = await together(house, {"ser_all.s2": LIMIT + 16, "ser_one.s1": 2}, {"ser_one.s1": 30})
    assert set(told["ser_one.s1"]) == {200}
    assert told["ser_all.s2"][503] > 0, "nothing had to be shed"
    assert set(told["ser_all.s2"]) == {200, 503}


async def test_two_keys_that_ask_too_much_are_shed_alike(house: House) -> None:
    told = await together(house, {"ser_all.s2": LIMIT, "ser_one.s1": LIMIT}, {"ser_all.s2": 200, "ser_one.s1": 200})
    answered = [told[secret][200] for secret in told]
    assert min(answered) > 0.7 * max(answered), told
    assert all(told[secret][503] > 0 for secret in told), told


# -- rates ------------------------------------------------------------------------------------------------------------


def statuses(gateway: Gateway, secret: str, count: int, rows: int = 1) -> tuple[list[int], float]:
    """Of so many requests one after the other, and how long they took."""
    began = time.monotonic()
    asked = request([0.5] * (16 * rows))
    found = [gateway.post(key=secret, json=asked).status_code for _ in range(count)]
    return found, time.monotonic() - began


@pytest.mark.parametrize(("secret", "rows", "burst"), [("ser_calls.s3", 3, 4), ("ser_rows.s4", 2, 2)])
def test_a_second_s_worth_may_come_at_once_and_then_the_rate_holds(
    house: House, secret: str, rows: int, burst: int
) -> None:
    found, took_s = statuses(house.gateways[0], secret, 16, rows)
    assert found[:burst] == [200] * burst
    assert burst <= found.count(200) <= burst * (1 + took_s)
    assert set(found) <= {200, 429}


@pytest.mark.parametrize("secret", ["ser_both.s5", "ser_few.s6"])
def test_who_waits_as_long_as_it_is_told_gets_an_answer(house: House, secret: str) -> None:
    """By the header, which has whole seconds; a request of more rows than a second's worth too."""
    gateway, asked = house.gateways[0], request([0.5] * (16 * 3))
    for _ in range(20):
        refused = gateway.post(key=secret, json=asked)
        if refused.status_code != 200:
            break
    assert (refused.status_code, refused.headers["x-error-code"]) == (429, "rate_limited")
    time.sleep(int(refused.headers["retry-after"]))
    assert gateway.post(key=secret, json=asked).status_code == 200


def test_a_key_has_one_bucket_at_all_doors_and_each_tells_when_there_is_room_again(house: House) -> None:
    gateway = house.gateways[0]
    assert gateway.post(key="ser_once.s7").status_code == 200
    by_rest = gateway.post(key="ser_once.s7")
    assert (by_rest.status_code, by_rest.headers["x-error-code"]) == (429, "rate_limited")
    with connect(
        f"ws://127.0.0.1:{gateway.port}/v2/models/mlp/stream", additional_headers=auth("ser_once.s7")
    ) as stream:
        stream.send(json.dumps(request(identity="1")))
        by_websocket = json.loads(stream.recv(20))
    assert by_websocket["code"] == "rate_limited"
    call = wire.INFER_REQUEST(model_name="mlp")
    call.inputs.add(name="x", datatype="FP32", shape=[1, 16]).contents.fp32_contents.extend(range(16))
    with grpc.insecure_channel(gateway.grpc_address) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as refused:
            infer(call.SerializeToString(), metadata=list(auth("ser_once.s7").items()), timeout=20)
    by_grpc = refused.value
    assert by_grpc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(by_grpc.trailing_metadata())
    assert trailers["x-error-code"] == "rate_limited"
    waits = [by_rest.headers["retry-after"], by_websocket["retry_after_s"], trailers["retry-after"]]
    assert all(0 < float(wait) <= 20 for wait in waits), waits


def auth(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}
