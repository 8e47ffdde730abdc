"""OpenAI's API of a real gateway process: the official client and plain HTTP, with a fake language replica behind it."""

import asyncio
import json
import time

import httpx
import openai
import pytest

from inference.protocol import generation
from inference.protocol.routes import EndpointRoute, VariantRoute
from tests.support.fake_language import FakeLanguage
from tests.support.gateway_house import MLP, TEXT, House, key, until

KEY = "ser_all.s2"


@pytest.fixture(scope="module")
def house():
    found = House()
    found.replica()
    for name in ("lm", "lm2"):
        replica = FakeLanguage(str(found.folder / f"{name}.sock"), name=name, version=1 + (name == "lm2"))
        found.replicas[name] = found.run(replica.start())
    gateway = found.gateway()
    language = generation.language_signature()
    lm = EndpointRoute("lm", "lm", "salt", False, 600, 64, [
        VariantRoute(1, "primary", 10_000, language, [found.route("lm")]),
        VariantRoute(2, "canary", 0, language, [found.route("lm2")]),
    ], 1_700_000_000, "red")  # fmt: skip
    open_lm = EndpointRoute("open-lm", "lm", "salt", True, 5000, 64, [
        VariantRoute(1, "primary", 10_000, language, [found.route("lm")]),
    ])  # fmt: skip
    empty = EndpointRoute("empty", "lm", "salt", False, 300, 64, [VariantRoute(1, "primary", 10_000, language, [])])
    text = EndpointRoute("text", "t", "salt", False, 300, 64, [VariantRoute(1, "primary", 10_000, TEXT, [])])
    keys = [key("all", "s2", ["*"]), key("one", "s1", ["lm"])]
    found.publish(found.table([VariantRoute(1, "primary", 10_000, MLP, [found.route()])], keys=keys,
                              endpoints=[lm, open_lm, empty, text]))  # fmt: skip
    gateway.wait_live()
    gateway.wait_ready("lm")
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


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def test_a_chat_is_answered(client, replica):
    found = client.chat.completions.create(
        model="lm", messages=[{"role": "system", "content": "s"}, *say("hello you there")], temperature=0.5, seed=7,
        max_completion_tokens=2, stop=["x"], extra_body={"top_k": 5, "ignore_eos": True, "min_tokens": 1, "nobody": 1},
    )  # fmt: skip
    assert found.id.startswith("chatcmpl-")
    assert (found.object, found.model) == ("chat.completion", "lm")
    choice = found.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "hello you", "length")
    assert found.usage.prompt_tokens == 3
    assert found.usage.prompt_tokens_details.cached_tokens == 1
    sampling = replica.asked[-1].sampling
    assert (sampling.temperature, sampling.seed, sampling.max_tokens, sampling.stop) == (0.5, 7, 2, ["x"])
    assert (sampling.top_k, sampling.ignore_eos, sampling.min_tokens) == (5, True, 1)
    assert [one["role"] for one in replica.asked[-1].prompt.messages] == ["system", "user"]


def test_a_chat_is_streamed_and_the_usage_comes_last(client):
    stream = client.chat.completions.create(
        model="lm", messages=say("a b c"), stream=True, stream_options={"include_usage": True}
    )
    found = list(stream)
    assert found[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in found[:-1]) == "a b c"
    assert found[-2].choices[0].finish_reason == "stop"
    assert found[-1].choices == []
    assert (found[-1].usage.prompt_tokens, found[-1].usage.completion_tokens) == (3, 3)
    assert all(chunk.usage is None for chunk in found[:-1])


def test_the_bytes_of_a_stream(gateway):
    text = post(gateway, model="lm", messages=say("a b"), stream=True).text
    found = events(text)
    assert [one["choices"][0]["delta"] for one in found] == [
        {"role": "assistant", "content": ""}, {"content": "a"}, {"content": " b"},
    ]  # fmt: skip
    assert all(list(one) == ["id", "object", "created", "model", "choices"] for one in found)
    assert len({one["id"] for one in found}) == 1
    more = {"include_usage": True, "continuous_usage_stats": True}
    found = events(post(gateway, model="lm", messages=say("a b"), stream=True, stream_options=more).text)
    assert [one["usage"]["completion_tokens"] for one in found] == [1, 1, 2, 2]


def test_each_event_is_a_write_of_its_own(gateway):
    body = {"model": "lm", "messages": say("slow a b"), "stream": True}
    with httpx.stream("POST", gateway.url + "/v1/chat/completions", json=body,
                      headers={"Authorization": f"Bearer {KEY}"}) as response:  # fmt: skip
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        pieces = list(response.iter_raw())
    assert sum(piece.count(b"data: ") > 1 for piece in pieces) <= 1  # the role and the first word may meet on the way


def test_choices_logprobs_and_token_ids(client, replica):
    found = client.chat.completions.create(
        model="lm", messages=say("ab é"), n=2, logprobs=True, top_logprobs=2, extra_body={"return_token_ids": True}
    )
    assert [choice.index for choice in found.choices] == [0, 1]
    tokens = found.choices[1].logprobs.content
    assert [(one.token, one.logprob, len(one.top_logprobs)) for one in tokens] == [("ab", -0.5, 2), (" é", -0.5, 2)]
    assert bytes(tokens[1].bytes).decode() == " é"
    assert found.choices[0].token_ids == [2 * 256 + ord("a"), 2 * 256 + 32]
    streamed = list(client.chat.completions.create(
        model="lm", messages=say("ab é"), n=2, logprobs=True, stream=True))  # fmt: skip
    assert {chunk.choices[0].index for chunk in streamed} == {0, 1}
    assert sum(len(chunk.choices[0].logprobs.content) for chunk in streamed if chunk.choices[0].logprobs) == 4


def test_tools_are_called_and_their_arguments_streamed(client, replica):
    found = client.chat.completions.create(model="lm", messages=say("tool sun"), tools=TOOLS).choices[0]
    assert found.finish_reason == "tool_calls"
    assert found.message.content is None
    call = found.message.tool_calls[0]
    assert (call.id, call.function.name, json.loads(call.function.arguments)) == ("call_0", "weather", {"x": "sun"})
    named = {"type": "function", "function": {"name": "weather"}}
    stream = client.chat.completions.create(
        model="lm", messages=say("tools sun"), tools=TOOLS, tool_choice=named, parallel_tool_calls=False, stream=True
    )
    deltas = [d for chunk in stream for d in chunk.choices[0].delta.tool_calls or []]
    assert (deltas[0].id, deltas[0].function.name, {delta.index for delta in deltas}) == ("call_0", "weather", {0})
    assert json.loads("".join(delta.function.arguments for delta in deltas)) == {"x": "s sun"}
    assert replica.asked[-1].prompt.tool_choice == "function:weather"


def test_reasoning_stands_beside_the_text(client):
    found = client.chat.completions.create(model="lm", messages=say("think a")).choices[0].message
    assert (found.reasoning, found.content) == ("hm so", "think a")
    stream = client.chat.completions.create(model="lm", messages=say("think a"), stream=True)
    assert "".join(getattr(chunk.choices[0].delta, "reasoning", "") or "" for chunk in stream) == "hm so"


def test_structured_output(client, replica):
    from pydantic import BaseModel

    class Shape(BaseModel):
        a: int

    found = client.chat.completions.parse(model="lm", messages=say("json"), response_format=Shape)
    assert found.choices[0].message.parsed == Shape(a=1)
    assert json.loads(replica.asked[-1].sampling.structure.json_schema)["properties"]["a"]["type"] == "integer"
    for more, wanted in (
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        ({"extra_body": {"structured_outputs": {"regex": "a+"}}}, {"regex": "a+"}),
        ({"extra_body": {"guided_choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
        ({"extra_body": {"structured_outputs": {"grammar": "start: A"}}}, {"grammar": "start: A"}),
    ):
        client.chat.completions.create(model="lm", messages=say("x"), **more)
        found = replica.asked[-1].sampling.structure
        assert all(getattr(found, name) == value for name, value in wanted.items())


def test_the_async_client(gateway):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
            whole = client.chat.completions.create(model="lm", messages=say("a b"))
            stream = await client.chat.completions.create(model="lm", messages=say("c d"), stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return (await whole).choices[0].message.content, text

    assert asyncio.run(ask()) == ("a b", "c d")


def test_completions_of_one_and_of_several_prompts(client, replica):
    found = client.completions.create(model="lm", prompt="a b c", max_tokens=2)
    assert (found.id[:5], found.object, found.choices[0].text) == ("cmpl-", "text_completion", "a b")
    found = client.completions.create(model="lm", prompt=["a", "b c", "d"], n=2)
    assert [(one.index, one.text) for one in found.choices] == [
        (0, "a"), (1, "a"), (2, "b c"), (3, "b c"), (4, "d"), (5, "d"),
    ]  # fmt: skip
    assert found.usage.prompt_tokens == 4
    assert client.completions.create(model="lm", prompt=[[5, 6], [7]]).choices[1].text == "7"
    assert client.completions.create(model="lm", prompt=[5, 6]).choices[0].text == "5 6"
    assert replica.asked[-1].prompt == [5, 6]
    assert replica.asked[-1].sampling.max_tokens == 16
    texts = ["", "", ""]
    for chunk in client.completions.create(model="lm", prompt=["a", "b c", "slow d"], stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["a", "b c", "slow d"]


def test_completions_echo_best_of_and_logprobs(client, replica):
    found = client.completions.create(model="lm", prompt="a b", echo=True, logprobs=1, max_tokens=1).choices[0]
    assert found.text == "a ba"
    assert found.logprobs.tokens[:2] == ["a", " b"]
    assert found.logprobs.token_logprobs[:2] == [None, -0.5]
    assert found.logprobs.text_offset[:3] == [0, 1, 3]
    found = client.completions.create(model="lm", prompt="a b", best_of=3, n=1)
    assert (len(found.choices), replica.asked[-1].sampling.n) == (1, 3)


def test_tokenize_and_detokenize(gateway):
    for prefix in ("", "/v1"):
        found = post(gateway, f"{prefix}/tokenize", model="lm", prompt="ab cd", return_token_strs=True).json()
        assert found == {"count": 2, "max_model_len": 512, "tokens": [609, 800], "token_strs": ["ab", " cd"]}
        assert post(gateway, f"{prefix}/detokenize", model="lm", tokens=[609, 800]).json() == {"prompt": "xx xxx"}
    assert post(gateway, "/tokenize", model="lm", messages=say("a b c")).json()["count"] == 3
    error(post(gateway, "/tokenize", model="lm"), 400, "missing_required_parameter", "prompt")


def test_models_are_those_that_the_key_may_use(client, gateway):
    assert [one.id for one in client.models.list()] == ["empty", "lm", "open-lm"]
    found = client.models.retrieve("lm")
    assert (found.id, found.object, found.created, found.owned_by) == ("lm", "model", 1_700_000_000, "red")
    assert client.models.retrieve("lm/polite").id == "lm/polite"
    assert gateway.get("/v1/models/lm:polite").json()["parent"] == "lm"
    assert [one["id"] for one in gateway.get("/v1/models", key="ser_one.s1").json()["data"]] == ["lm", "open-lm"]
    error(gateway.get("/v1/models/nope"), 404, "model_not_found", "model")


def test_adapters_and_versions_are_named_by_the_model(client, replica, house):
    for name in ("lm:polite", "lm/polite"):
        assert client.chat.completions.create(model=name, messages=say("a")).choices[0].message.content == "pleasea"
    house.replicas["lm2"].asked.clear()
    answer = client.chat.completions.with_raw_response.create(model="lm@2", messages=say("a"))
    assert answer.headers["x-model-version"] == "2"
    assert len(house.replicas["lm2"].asked) == 1
    with pytest.raises(openai.NotFoundError, match="no adapter"):
        client.chat.completions.create(model="lm:rude", messages=say("a"))
    with pytest.raises(openai.NotFoundError) as found:
        client.chat.completions.create(model="lm@3", messages=say("a"))
    assert found.value.code == "model_not_found"


def test_errors_come_in_the_envelope(gateway):
    assert "API key" in error(post(gateway, credential="", model="lm", messages=say("a")), 401, "invalid_api_key")
    error(post(gateway, credential="ser_all.wrong", model="lm", messages=say("a")), 401, "invalid_api_key")
    error(post(gateway, credential="ser_one.s1", model="mlp", messages=say("a")), 403, "forbidden")
    error(post(gateway, model="nope", messages=say("a")), 404, "model_not_found", "model")
    error(post(gateway, model="mlp", messages=say("a")), 400, "model_not_supported", "model")
    error(gateway.get("/v1/nope"), 404)
    error(gateway.get("/v1"), 404)
    error(gateway.get("/v1/chat/completions"), 405, "method_not_allowed")
    assert post(gateway, "/v1/chat/completions", credential="", model="open-lm", messages=say("a")).status_code == 200
    away = post(gateway, model="empty", messages=say("a"), stream=True)
    error(away, 503, "not_ready")


def test_a_refusal_says_when_to_come_back_and_a_break_that_it_is_of_no_use(gateway):
    answer = post(gateway, model="lm", messages=say("fail"), stream=True)
    error(answer, 503, "overloaded")
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("2", "2000")
    assert "x-should-retry" not in answer.headers
    late = httpx.post(
        gateway.url + "/v1/chat/completions", json={"model": "lm", "messages": say("slow" + " w" * 50), "stream": True},
        headers={"Authorization": f"Bearer {KEY}", "X-Request-Timeout-Ms": "150"},
    )  # fmt: skip
    assert late.status_code == 200
    assert events(late.text)[-1]["error"]["code"] == "deadline_exceeded"


def test_an_error_within_a_stream_comes_as_an_event(gateway, client):
    found = events(post(gateway, model="lm", messages=say("break a b c"), stream=True).text)
    assert found[-1]["error"]["code"] == "out_of_memory"
    assert found[-2]["choices"][0]["delta"]["content"] == " a"
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(model="lm", messages=say("break a b c"), stream=True))


def test_the_client_asks_again_where_it_makes_sense(gateway, replica):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=1) as client:
        began = time.monotonic()
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="lm", messages=say("fail"))
        assert time.monotonic() - began >= 2
    assert len(replica.asked) == 2


def test_a_generation_may_take_longer_than_the_endpoints_limit_for_one_answer(client):
    """The endpoint's is 600 ms."""
    words = "slow" + " w" * 60
    stream = client.chat.completions.create(model="lm", messages=say(words), stream=True)
    began = time.monotonic()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == words
    assert time.monotonic() - began > 0.9


def test_a_client_that_leaves_ends_its_generation(gateway, replica, house):
    before = len(replica.cancelled)
    body = {"model": "lm", "messages": say("slow" + " w" * 1000), "stream": True}
    with httpx.stream("POST", gateway.url + "/v1/chat/completions", json=body,
                      headers={"Authorization": f"Bearer {KEY}"}) as response:  # fmt: skip
        next(response.iter_raw())
    until(lambda: len(replica.cancelled) == before + 1, 1)


def test_a_slow_reader_pauses_only_itself(gateway, replica):
    import socket

    body = json.dumps({"model": "lm", "messages": say("long"), "max_tokens": 200_000, "stream": True}).encode()
    pauses = replica.pauses
    with socket.create_connection(("127.0.0.1", gateway.port)) as peer:
        peer.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + KEY.encode()
                     + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)  # fmt: skip
        until(lambda: replica.pauses > pauses, 10)
        time.sleep(0.3)
        sent = replica.parts_sent
        assert post(gateway, model="lm", messages=say("a b")).json()["choices"][0]["message"]["content"] == "a b"
        time.sleep(0.2)
        assert replica.parts_sent - sent <= 1
        assert sent < 100_000
    until(lambda: not [one for one in replica.peers for task in one.streams.values() if not task.done()], 5)
