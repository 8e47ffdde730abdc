"""A gateway process with a fake language model behind it, as the tests of OpenAI's API ask it.

Endpoints: "lm" (version 1, which has the adapter "polite"; 2 by its number alone; the owner is the team "red"), "open-lm" without a key, "narrow" for
two requests at a time, "empty" without a replica, "text" and "mlp" that are no language models. Keys: "all"; "one" for
"lm"; "few" for "lm" every other second.
"""

import json

import httpx
import openai
import pytest

from inference.protocol import generation
from inference.protocol.routes import EndpointRoute, VariantRoute
from tests.support.fake_language import FakeLanguage
from tests.support.gateway_house import MLP, TEXT, House, key

KEY = "ser_all.s2"


def open_house() -> House:
    found = House()
    found.replica()
    for name in ("lm", "lm2"):
        replica = FakeLanguage(str(found.folder / f"{name}.sock"), name=name, version=1 + (name == "lm2"))
        found.replicas[name] = found.run(replica.start())
    gateway = found.gateway()
    language = generation.language_signature()
    lm = EndpointRoute("lm", "lm", "salt", False, 600, 64, [
        VariantRoute(1, "primary", 10_000, language, [found.route("lm")], adapters=["polite"]),
        VariantRoute(2, "canary", 0, language, [found.route("lm2")]),
    ], 1_700_000_000, "red")  # fmt: skip
    open_lm = EndpointRoute("open-lm", "lm", "salt", True, 5000, 64, [
        VariantRoute(1, "primary", 10_000, language, [found.route("lm")]),
    ])  # fmt: skip
    narrow = EndpointRoute("narrow", "lm", "salt", False, 600, 2, [
        VariantRoute(1, "primary", 10_000, language, [found.route("lm")]),
    ])  # fmt: skip
    empty = EndpointRoute("empty", "lm", "salt", False, 300, 64, [VariantRoute(1, "primary", 10_000, language, [])])
    text = EndpointRoute("text", "t", "salt", False, 300, 64, [VariantRoute(1, "primary", 10_000, TEXT, [])])
    keys = [key("all", "s2", ["*"]), key("one", "s1", ["lm"]), key("few", "s3", ["lm"], requests_per_s=0.5)]
    found.publish(found.table([VariantRoute(1, "primary", 10_000, MLP, [found.route()])], keys=keys,
                              endpoints=[lm, open_lm, narrow, empty, text]))  # fmt: skip
    gateway.wait_live()
    gateway.wait_ready("lm")
    return found


def fixtures():
    """`house, gateway, replica, client = fixtures()` in a test module: a house of its own for the module, its gateway
    (what "lm" was asked before is forgotten), the fake replica of "lm", and OpenAI's client.
    """

    @pytest.fixture(scope="module")
    def house():
        found = open_house()
        yield found
        found.close()

    @pytest.fixture
    def gateway(house):
        house.replicas["lm"].asked.clear()
        return house.gateways[0]

    @pytest.fixture
    def replica(house):
        return house.replicas["lm"]

    @pytest.fixture
    def client(gateway):
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as found:
            yield found

    return house, gateway, replica, client


def say(text):
    return [{"role": "user", "content": text}]


def post(gateway, path="/v1/chat/completions", credential=KEY, **body):
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    return httpx.post(gateway.url + path, headers=headers, json=body, timeout=30)


def error(response, status, code=None, param=None):
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert (found["code"], found["param"]) == (code, param), found
    assert response.headers["x-request-id"]
    return found["message"]


def events(text):
    """The JSON of each `data:` event of a stream that ends with [DONE]."""
    *found, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(one.removeprefix("data: ")) for one in found]
