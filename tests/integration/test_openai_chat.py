"""OpenAI's API of a real gateway process: the official client and plain HTTP, with a fake language replica behind it."""

import asyncio
import json
import time

import httpx
import openai
import pytest

from inference.protocol.statistics import GenerationStatistics
from tests.support import openai_house
from tests.support.gateway_house import until
from tests.support.openai_house import KEY, error, events, post, say

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


house, gateway, replica, client = openai_house.fixtures()


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


def test_the_trace_context_reaches_the_engine_and_comes_back(gateway, replica):
    told = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", "tracestate": "a=1"}
    for stream in (False, True):
        body = {"model": "lm", "messages": say("a b"), "stream": stream}
        answer = gateway.post("/v1/chat/completions", json=body, headers=told)
        assert (answer.status_code, answer.headers["traceparent"]) == (200, told["traceparent"])
        seen = replica.seen[-1]
        assert (seen.traceparent, seen.tracestate) == tuple(told.values())


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
    client.completions.create(model="lm", prompt="a b", echo=True, max_tokens=0)  # to have the prompt weighed
    assert replica.asked[-1].sampling.max_tokens == 0
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
    assert [one.id for one in client.models.list()] == ["empty", "lm", "lm:polite", "narrow", "open-lm"]
    found = client.models.retrieve("lm")
    assert (found.id, found.object, found.created, found.owned_by) == ("lm", "model", 1_700_000_000, "red")
    assert client.models.retrieve("lm/polite").id == "lm/polite"
    assert gateway.get("/v1/models/lm:polite").json()["parent"] == "lm"
    assert [one["id"] for one in gateway.get("/v1/models", key="ser_one.s1").json()["data"]] == [
        "lm",
        "lm:polite",
        "open-lm",
    ]
    for missing in ("nope", "lm:rude", "lm@2:polite"):
        error(gateway.get(f"/v1/models/{missing}"), 404, "model_not_found", "model")
    error(gateway.get("/v1/models/nope"), 404, "model_not_found", "model")


def test_adapters_and_versions_are_named_by_the_model(client, replica, house):
    for name in ("lm:polite", "lm/polite"):
        assert client.chat.completions.create(model=name, messages=say("a")).choices[0].message.content == "pleasea"
    house.replicas["lm2"].asked.clear()
    answer = client.chat.completions.with_raw_response.create(model="lm@2", messages=say("a"))
    assert answer.headers["x-model-version"] == "2"
    assert len(house.replicas["lm2"].asked) == 1
    with pytest.raises(openai.NotFoundError, match="no adapter") as found:
        client.chat.completions.create(model="lm:rude", messages=say("a"))
    assert (found.value.code, found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as found:
        client.chat.completions.create(model="lm@3", messages=say("a"))
    assert found.value.code == "model_not_found"


def test_vllms_fields_reach_the_engine(client, replica):
    client.chat.completions.create(
        model="lm", messages=say("a"), extra_body={
            "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 1, "ignore_eos": True, "priority": -3,
            "stop_token_ids": [7], "bad_words": ["x"], "chat_template": "{{ messages }}", "cache_salt": "mine",
            "chat_template_kwargs": {"enable_thinking": False}, "add_generation_prompt": False, "prompt_logprobs": 1,
            "continue_final_message": True, "return_token_ids": True, "include_stop_str_in_output": True,
            "skip_special_tokens": False,
        },
    )  # fmt: skip
    asked = replica.asked[-1]
    chat, sampling = asked.prompt, asked.sampling
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty, sampling.min_tokens) == (5, 0.1, 1.1, 1)
    assert (sampling.ignore_eos, sampling.stop_token_ids, sampling.bad_words) == (True, [7], ["x"])
    assert (sampling.include_stop, sampling.skip_special_tokens, sampling.prompt_logprobs) == (True, False, 1)
    assert (chat.template, chat.template_arguments) == ("{{ messages }}", {"enable_thinking": False})
    assert (chat.add_generation_prompt, chat.continue_final_message) == (False, True)
    assert (asked.priority, asked.return_token_ids) == (-3, True)
    assert asked.salt == "all\0mine"


def test_a_generation_may_take_longer_than_the_endpoints_limit_for_one_answer(client):
    """The endpoint's is 600 ms."""
    words = "slow" + " w" * 60
    stream = client.chat.completions.create(model="lm", messages=say(words), stream=True)
    began = time.monotonic()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == words
    assert time.monotonic() - began > 0.9


def test_an_engines_numbers_stand_in_the_metrics_under_vllms_names(gateway, replica):
    replica.statistics.generation = GenerationStatistics(running=3, output_tokens=17)
    until(lambda: 'vllm:num_requests_running{model_name="lm",version="1"} 3.0' in gateway.get("/metrics").text)
    found = gateway.get("/metrics").text
    assert 'serinus_language_generated_tokens_total{endpoint="lm",version="1"} 17.0' in found
    assert 'vllm:generation_tokens_total{model_name="lm",version="2"}' not in found
