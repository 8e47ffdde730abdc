"""Real requests that are kept: a share, bounded, and never with anything that tells who asked."""

from __future__ import annotations

import struct
import time

import httpx
import pytest

from inference.protocol import generation, records
from inference.protocol.routes import RECORDS_STREAM, EndpointRoute, Recording, VariantRoute
from tests.support.fake_language import FakeLanguage
from tests.support.gateway_house import MLP, House, request, until

SECRETS = (b"ser_all", b"s2", b"session-of-mine", b"Bearer", b"private-header", b"salty")


@pytest.fixture(scope="module")
def house():
    found = House()
    found.replica("r1")
    language = FakeLanguage(str(found.folder / "lm.sock"), name="lm")
    found.replicas["lm"] = found.run(language.start())
    found.gateway(SERINUS_HEADER_FORWARD_PATTERN="^x-mine$")
    found.publish(found.table())
    found.gateways[0].wait_live()
    yield found
    found.close()


def recorded(house, name, recording, signature=MLP, replica="r1"):
    variants = [VariantRoute(1, "primary", 10_000, signature, [house.route(replica)])]
    endpoint = EndpointRoute(name, "m", "salt", True, 5000, 64, variants, recording=recording)
    house.publish(house.table(endpoints=[endpoint]))
    until(lambda: f"generation {house.generation} " in house.gateways[0].log.read_text(), 10)
    return house.gateways[0].wait_ready(name)


def kept(house, name):
    raw = [fields[records.FIELD] for _, fields in house.valkey.client.xrange(RECORDS_STREAM)]
    return [(one, data) for one, data in ((records.decode(data), data) for data in raw) if one.endpoint == name]


def test_a_request_is_kept_with_its_answer_and_without_its_caller(house):
    gateway = recorded(house, "all", Recording(10_000))
    body = request() | {"parameters": {"beam": 3}}
    headers = {"X-Session-Id": "session-of-mine", "X-Mine": "private-header", "X-Request-Id": "mine-1"}
    assert gateway.post("/v2/models/all/infer", json=body, headers=headers).status_code == 200
    until(lambda: kept(house, "all"), 5)
    ((one, data),) = kept(house, "all")
    assert (one.version, one.kind, one.is_repeatable, one.parameters) == (1, records.INFER, True, {"beam": 3})
    assert struct.unpack("<16f", one.body) == tuple(map(float, range(16)))
    assert [(tensor.name, tensor.shape) for tensor in one.answer] == [("y", [1, 4])]
    assert struct.unpack("<4f", one.answer_body) == (0.0, 2.0, 4.0, 6.0)
    assert one.latency_ms > 0
    assert not [secret for secret in SECRETS if secret in data]


def test_only_a_share_is_kept_and_nothing_that_is_too_large(house):
    gateway = recorded(house, "some", Recording(2500))
    with httpx.Client() as client:
        for _ in range(120):
            assert client.post(f"{gateway.url}/v2/models/some/infer", json=request()).status_code == 200
    until(lambda: kept(house, "some"), 5)
    time.sleep(1.2)
    assert 10 <= len(kept(house, "some")) <= 55
    gateway = recorded(house, "small", Recording(10_000, max_bytes=79))
    assert gateway.post("/v2/models/small/infer").status_code == 200
    gateway = recorded(house, "fits", Recording(10_000, max_bytes=80))
    assert gateway.post("/v2/models/fits/infer").status_code == 200
    until(lambda: kept(house, "fits"), 5)
    assert kept(house, "small") == []


def test_sequences_and_failures_are_not_kept(house):
    gateway = recorded(house, "few", Recording(10_000))
    body = request() | {"parameters": {"sequence_id": 3, "sequence_start": True, "sequence_end": True}}
    assert gateway.post("/v2/models/few/infer", json=body).status_code == 200
    assert gateway.post("/v2/models/few/infer", json={"inputs": []}).status_code == 400
    assert gateway.post("/v2/models/few/infer").status_code == 200
    until(lambda: kept(house, "few"), 5)
    assert len(kept(house, "few")) == 1


def test_a_chat_is_kept_as_asked_without_its_callers_salt(house):
    gateway = recorded(house, "chat", Recording(10_000), generation.language_signature(), "lm")
    body = {"model": "chat", "messages": [{"role": "user", "content": "one two"}], "temperature": 0, "stream": True,
            "cache_salt": "salty"}  # fmt: skip
    response = httpx.post(f"{gateway.url}/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    until(lambda: kept(house, "chat"), 5)
    ((one, data),) = kept(house, "chat")
    assert (one.kind, one.is_repeatable) == (records.LANGUAGE, True)
    asked = generation.decode_asked(one.body[4:])
    assert asked.prompt.messages == [{"role": "user", "content": "one two"}]
    assert (asked.salt, asked.stream, asked.sampling.temperature) == ("", False, 0)
    assert [tensor.name for tensor in one.answer] == ["text"]
    assert one.answer_body[4:] == b"one two"
    assert not [secret for secret in SECRETS if secret in data]
