"""Five thousand broken messages against one gateway: it stays the same process, keeps nothing and answers in words.

`python -m tests.soak --minutes 1` sends more; a finding prints its seed, index and bytes, and goes into fuzz_corpus.json.
"""

from __future__ import annotations

import asyncio
import os
import resource
from pathlib import Path

import pytest

from tests.support import fuzzing
from tests.support.gateway_house import House, free_port, until

SEED = int(os.environ.get("FUZZ_SEED", "20261126"))
COUNT = int(os.environ.get("FUZZ_COUNT", "5000"))


@pytest.fixture(scope="module")
def house():
    found = House()
    found.replica()
    found.publish(found.table(queue_limit=1000))
    found.gateway(SERINUS_GRPC_PORT=str(free_port())).wait_live().wait_ready()
    yield found
    found.close()


@pytest.fixture(scope="module")
def target(house):
    gateway = house.gateways[0]
    return fuzzing.Target(gateway.port, "ser_all.s2", grpc_port=int(gateway.grpc_address.rpartition(":")[2]))


def rss_bytes(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def checked(house, target, count, seed):
    """Runs a storm and looks at the process before and after."""
    gateway = house.gateways[0]
    asyncio.run(fuzzing.storm(target, 200, seed + 1))  # what is made once is made now
    memory, pid = rss_bytes(gateway.process.pid), gateway.process.pid
    found = asyncio.run(fuzzing.storm(target, count, seed))
    assert not found.problems, "\n".join(found.problems[:5])
    assert gateway.process.poll() is None
    assert gateway.process.pid == pid
    assert "Traceback" not in gateway.log.read_text()
    until(lambda: "serinus_requests_in_flight 0.0" in gateway.get("/metrics").text)
    until(lambda: "serinus_websocket_connections 0.0" in gateway.get("/metrics").text)
    assert rss_bytes(pid) - memory < 32 << 20
    assert gateway.post().status_code == 200
    return found


def test_five_thousand_broken_messages_are_answers_or_typed_errors(house, target):
    found = checked(house, target, COUNT, SEED)
    assert found.messages >= COUNT * 0.95
    # the mutations reach what they are meant to: sound ones pass, others are refused for many reasons
    assert {
        "200",
        "400",
        "401",
        "404",
        "outputs",
        "malformed",
        "invalid_input",
        "close 1000",
        "grpc OK",
        "grpc INVALID_ARGUMENT",
        "http2 headers",
        "http2 data",
        "http2 closed",
    } <= set(found.seen), found.seen


def test_what_once_broke_something_is_answered(target):
    found = asyncio.run(fuzzing.replay(target))
    assert not found.problems, "\n".join(found.problems)
    assert found.messages
