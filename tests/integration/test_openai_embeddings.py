"""Embeddings, score and rerank of a real gateway process, with a real encoder's replica and a fake one behind it."""

import base64
import math
import struct

import httpx
import openai
import pytest

from inference.protocol import frames, token_ids
from inference.protocol.messages import Answer, Infer, TensorHeader
from inference.protocol.oip import Signature, TensorSpec
from inference.protocol.routes import EndpointRoute, VariantRoute
from tests.support.fake_replica import FakePeer, FakeReplica
from tests.support.gateway_house import MLP, House

KEY = "ser_all.s2"
ENCODER = Signature(
    [TensorSpec("text", "BYTES", [-1])], [TensorSpec("embedding", "FP32", [-1, 4])], max_batch_size=3,
    platform="hf_encoder",
)  # fmt: skip
OWN = Signature(
    [TensorSpec("text", "BYTES", [-1])], [TensorSpec("embedding", "FP32", [-1, 4])], max_batch_size=3, platform="python"
)
CLASSES = Signature(
    [TensorSpec("text", "BYTES", [-1])], [TensorSpec("scores", "FP32", [-1, 2])], max_batch_size=3,
    platform="hf_encoder", labels=["no", "yes"],
)  # fmt: skip


class FakeEncoder(FakeReplica):
    """A text's vector counts its letters a, b, c and d; its tokens are its characters, by their numbers."""

    async def start(self):
        import asyncio

        self._server = await asyncio.get_running_loop().create_unix_server(lambda: EncoderPeer(self), self.path)
        return self


class EncoderPeer(FakePeer):
    def answer(self, message: Infer, body: memoryview) -> None:
        texts, at = [], 0
        while at < len(body):
            size = int.from_bytes(body[at : at + 4], "little")
            element = bytes(body[at + 4 : at + 4 + size])
            ids = token_ids.unpacked(element)
            texts.append(element.decode() if ids is None else "".join(map(chr, ids)))
            at += 4 + size
        data = b"".join(struct.pack("<4f", *(float(text.count(letter)) for letter in "abcd")) for text in texts)
        header = TensorHeader("embedding", "FP32", [len(texts), 4], len(data))
        told = {"tokens": sum(map(len, texts))} if message.parameters.get("count_tokens") else {}
        self.transport.write(frames.encode(Answer(message.id, [header], 1, 1, 1, parameters=told), data))


@pytest.fixture(scope="module")
def house():
    found = House()
    found.replica()
    encoder = FakeEncoder(str(found.folder / "e1.sock"), name="e1")
    found.replicas["e1"] = found.run(encoder.start())
    gateway = found.gateway()

    def endpoint(name, signature):
        variant = VariantRoute(1, "primary", 10_000, signature, [found.route("e1")])
        return EndpointRoute(name, name, "salt", False, 5000, 64, [variant])

    table = found.table([VariantRoute(1, "primary", 10_000, MLP, [found.route()])],
                        endpoints=[endpoint("enc", ENCODER), endpoint("cls", CLASSES), endpoint("own", OWN)])  # fmt: skip
    found.publish(table)
    gateway.wait_live().wait_ready("enc")
    yield found
    found.close()


@pytest.fixture
def client(house):
    with openai.OpenAI(base_url=f"{house.gateways[0].url}/v1", api_key=KEY, max_retries=0) as found:
        yield found


def post(house, path, **body):
    return httpx.post(house.gateways[0].url + path, json=body, headers={"Authorization": f"Bearer {KEY}"})


def test_embeddings_through_the_clients_base64(client):
    found = client.embeddings.create(
        model="enc",
        input=["aab", "d", "abcd", "cc", "b"],
    )
    assert [one.embedding for one in found.data] == [
        [2, 1, 0, 0],
        [0, 0, 0, 1],
        [1, 1, 1, 1],
        [0, 0, 2, 0],
        [0, 1, 0, 0],
    ]
    assert [one.index for one in found.data] == [0, 1, 2, 3, 4]
    assert (found.usage.prompt_tokens, found.usage.total_tokens) == (11, 11)


def test_token_ids_stand_for_texts(client):
    found = client.embeddings.create(model="enc", input=[[97, 97, 98], [100], [97, 98, 99, 100], [99, 99]])
    assert [one.embedding for one in found.data] == [[2, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 2, 0]]
    assert found.usage.prompt_tokens == 10
    assert client.embeddings.create(model="enc", input=[97, 98, 98]).data[0].embedding == [1, 2, 0, 0]


def test_both_forms_say_the_same(house):
    plain = post(house, "/v1/embeddings", model="enc", input="abb", encoding_format="float").json()["data"][0]
    packed = post(house, "/v1/embeddings", model="enc", input="abb", encoding_format="base64").json()["data"][0]
    assert plain["embedding"] == [1, 2, 0, 0]
    assert list(struct.unpack("<4f", base64.b64decode(packed["embedding"]))) == plain["embedding"]


def test_fewer_dimensions_have_length_one_again(client, house):
    found = client.embeddings.create(model="enc", input="aaabbbbcc", dimensions=2).data[0].embedding
    assert found == pytest.approx([0.6, 0.8])
    assert math.hypot(*found) == pytest.approx(1)
    assert post(house, "/v1/embeddings", model="enc", input="a", dimensions=5).json()["error"]["param"] == "dimensions"


def test_score_and_rerank_are_cosines(house):
    found = post(house, "/v1/score", model="enc", text_1="a", text_2=["aa", "b", "ab"]).json()
    assert [one["score"] for one in found["data"]] == pytest.approx([1, 0, math.sqrt(0.5)])
    found = post(house, "/v1/rerank", model="enc", query="a", documents=["b", {"text": "ab"}, "aa"], top_n=2).json()
    assert [(one["index"], one["document"]["text"]) for one in found["results"]] == [(2, "aa"), (1, "ab")]
    assert found["usage"]["total_tokens"] == 6


def test_score_and_rerank_have_the_addresses_that_other_servers_give_them(house):
    for path in ("/score", "/v1/score"):
        assert post(house, path, model="enc", queries="a", documents="a").json()["data"][0]["score"] == 1
        assert post(house, path, model="nope", text_1="a", text_2="a").json()["error"]["code"] == "model_not_found"
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        assert post(house, path, model="enc", query="a", documents=["a"]).json()["results"][0]["relevance_score"] == 1
        assert post(house, path, model="nope", query="a", documents=["a"]).status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": [1, "a"]}, "input"),
        ("/v1/embeddings", {"input": [[1], 2]}, "input"),
        ("/v1/embeddings", {"input": [[1], []]}, "input"),
        ("/v1/embeddings", {"input": [-1 << 40]}, "input"),
        ("/v1/embeddings", {"model": "own", "input": [1, 2]}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"model": "mlp", "input": "a"}, "model"),
        ("/v1/embeddings", {"model": "cls", "input": "a"}, "model"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(house, path, body, param):
    answer = post(house, path, **({"model": "enc"} | body))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
