"""Arbitrary bodies at every address of OpenAI's API: typed errors in the envelope, never a 500."""

import json
import random

import httpx
import msgspec
import pytest

from inference.protocol import generation, openai
from inference.protocol.routes import VariantRoute
from tests.support.fake_language import FakeLanguage
from tests.support.gateway_house import House

ADDRESSES = {
    "/v1/chat/completions": openai.ChatBody,
    "/v1/completions": openai.CompletionBody,
    "/v1/embeddings": openai.EmbeddingBody,
    "/v1/responses": openai.ResponseBody,
    "/v1/score": openai.ScoreBody,
    "/v1/rerank": openai.RerankBody,
    "/tokenize": openai.TokenizeBody,
    "/detokenize": openai.DetokenizeBody,
}
TEXTS = ["", "a", "auto", "user", "json_schema", "mlp", "\x00", "é" * 100, "function", "\ud800"]
NUMBERS = [0, 1, -1, 2, 0.5, -0.5, 1e308, 2**31, 2**63, 2**64, 10**30, 129, 17]


def anything(pick: random.Random, depth: int = 3):
    kinds = ["text", "number", "constant"] + (["list", "object", "message", "tool"] if depth else [])
    kind = pick.choice(kinds)
    if kind == "text":
        return pick.choice(TEXTS)
    if kind == "number":
        return pick.choice(NUMBERS)
    if kind == "constant":
        return pick.choice([None, True, False])
    if kind == "list":
        return [anything(pick, depth - 1) for _ in range(pick.randrange(4))]
    if kind == "message":
        return [{"role": pick.choice(["user", "assistant", "tool", anything(pick, 0)]), "content": anything(pick, 2)}]
    if kind == "tool":
        return [{"type": "function", "function": {"name": anything(pick, 0), "parameters": anything(pick, 2)}}]
    return {pick.choice(["type", "name", "schema", "text", "json", "a"]): anything(pick, depth - 1) for _ in range(3)}


def bodies(pick: random.Random, kind: type):
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    good = {"model": "mlp", "messages": [{"role": "user", "content": "a b"}], "prompt": "a", "input": "a", "query": "a",
            "documents": ["a"], "text_1": "a", "text_2": "a", "tokens": [513]}  # fmt: skip
    body = {name: good[name] for name in names if name in good and pick.random() < 0.9}
    for name in pick.sample(names, min(len(names), pick.randrange(1, 4))):
        body[name] = anything(pick)
    return body


@pytest.fixture(scope="module")
def gateway():
    house = House()
    replica = FakeLanguage(str(house.folder / "r1.sock"), name="r1")
    house.replicas["r1"] = house.run(replica.start())
    found = house.gateway()
    house.publish(house.table([VariantRoute(1, "primary", 10_000, generation.language_signature(), [house.route()])]))
    found.wait_live().wait_ready()
    yield found
    house.close()


@pytest.mark.parametrize("path", ADDRESSES)
def test_arbitrary_fields_are_answered_or_refused_by_name(gateway, path):
    pick = random.Random(path)
    seen = set()
    with httpx.Client(headers={"Authorization": "Bearer ser_all.s2"}, timeout=30) as client:
        for _ in range(150):
            text = json.dumps(bodies(pick, ADDRESSES[path]))
            answer = client.post(gateway.url + path, content=text)
            seen.add(answer.status_code)
            assert answer.status_code in {200, 400, 404}, (answer.status_code, text, answer.text)
            if answer.status_code != 200:
                found = answer.json()["error"]
                assert set(found) == {"message", "type", "param", "code"}
                assert found["message"], text
    assert 400 in seen


@pytest.mark.parametrize("path", ADDRESSES)
def test_what_is_no_object_is_refused(gateway, path):
    deep = b"[" * 100_000
    for body in (b"", b"{", b"[]", b"null", b"1", b'"a"', b"\xff", deep, b'{"model":' + deep, b'{"a":1}x', b"{}"):
        answer = httpx.post(gateway.url + path, content=body, headers={"Authorization": "Bearer ser_all.s2"})
        assert answer.status_code == 400, (body[:20], answer.text[:200])
        assert answer.json()["error"]["message"]
