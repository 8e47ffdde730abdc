"""OpenAI's API from the client to the engine and back: a real gateway and a real replica of a tiny random Llama."""

import contextlib
import json
import re
import time

import httpx
import pytest
from websockets.sync.client import connect

from tests.support import language
from tests.support.gateway_house import until
from tests.support.openai_house import KEY, error, events, post, say
from tests.support.real_language import doors, served

SETTINGS = {"generation": {"max_num_seqs": 8, "block_size": 8}}
CONTEXT = 512
PER_REQUEST = (
    "e2e_request_latency_seconds", "request_queue_time_seconds", "request_prompt_tokens", "request_generation_tokens",
)  # fmt: skip
POLL_S = 1.2  # gateways ask their replicas once a second


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    root = tmp_path_factory.mktemp("engine")
    language.folder(root / "m")
    with served(root, SETTINGS) as found:
        yield found


gateway, client = doors()


def metric(gateway, name):
    """The first sample of that name; -1 until the replica was asked."""
    found = re.search(rf"^{name}{{.*}} (.*)$", gateway.get("/metrics").text, re.MULTILINE)
    return float(found.group(1)) if found else -1


def test_a_greedy_chat_says_the_same_streamed_or_not(client):
    asked = {"model": "mlp", "messages": say("two and two"), "temperature": 0, "max_completion_tokens": 12}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    text, tokens = whole.choices[0].message.content, whole.choices[0].logprobs.content
    assert whole.usage.completion_tokens == len(tokens) + (whole.choices[0].finish_reason == "stop")
    assert all(one.logprob == one.top_logprobs[0].logprob for one in tokens)  # greedy takes the likeliest
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0


def test_a_seed_says_the_same_again_and_choices_differ(client):
    asked = {"model": "mlp", "prompt": "The canary", "n": 3, "temperature": 1.5, "seed": 7, "max_tokens": 16}
    first, second = ([one.text for one in client.completions.create(**asked).choices] for _ in range(2))
    assert first == second
    assert len(set(first)) == 3


def test_the_prompt_is_weighed_by_echo_and_logprobs(client, gateway):
    found = client.completions.create(model="mlp", prompt="two and two", echo=True, logprobs=1, max_tokens=0)
    choice = found.choices[0]
    assert (choice.text, choice.finish_reason) == ("two and two", "length")
    assert found.usage.completion_tokens == 0
    count = post(gateway, "/tokenize", model="mlp", prompt="two and two").json()["count"]
    assert len(choice.logprobs.token_logprobs) == count
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])


def test_tokens_go_there_and_back(gateway):
    found = post(gateway, "/tokenize", model="mlp", prompt="grüße, canary", return_token_strs=True).json()
    assert found["max_model_len"] == CONTEXT
    assert post(gateway, "/detokenize", model="mlp", tokens=found["tokens"]).json() == {"prompt": "grüße, canary"}
    assert len(found["token_strs"]) == found["count"]


def test_a_chats_own_template_is_taken_only_where_the_version_says_so(gateway):
    told = error(post(gateway, model="mlp", messages=say("hi"), chat_template="{{ messages }}"), 400, "invalid_input")
    assert told.startswith("chat_template is not taken from requests here")
    assert "generation.trust_request_chat_template" in told


def test_structured_output_keeps_its_schema(client):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="mlp", messages=say("a?"), max_completion_tokens=300, seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    ).choices[0]  # fmt: skip
    assert json.loads(answer.message.content)["a"] in {True, False}
    answer = client.chat.completions.create(
        model="mlp", messages=say("a?"), extra_body={"structured_outputs": {"choice": ["yes", "no"]}}
    )
    assert answer.choices[0].message.content in {"yes", "no"}


def test_a_response_is_streamed_and_goes_on(client):
    found = list(client.responses.create(model="mlp", input="two", max_output_tokens=8, temperature=0, stream=True))
    assert found[-1].type in {"response.completed", "response.incomplete"}
    text = "".join(event.delta for event in found if event.type == "response.output_text.delta")
    assert found[-1].response.output_text == text
    assert client.responses.retrieve(found[-1].response.id).output_text == text
    again = client.responses.create(
        model="mlp", input="and", previous_response_id=found[-1].response.id, max_output_tokens=4, temperature=0
    )
    assert again.usage.input_tokens > found[-1].response.usage.total_tokens


@pytest.mark.parametrize(("words", "most"), [(600, 1), (1, 600)], ids=["prompt", "answer"])
def test_what_does_not_fit_is_refused_with_both_numbers(gateway, words, most):
    told = error(
        post(gateway, "/v1/completions", model="mlp", prompt=[5] * words, max_tokens=most),
        400,
        "context_length_exceeded",
    )
    assert told.startswith(f"This model's maximum context length is {CONTEXT} tokens. However, ")
    assert str(words + most if words == 1 else words) in told
    assert str(CONTEXT) in told
    error(post(gateway, "/v1/completions", model="mlp", prompt=[language.VOCABULARY]), 400, "invalid_input")


def by_length(gateway):
    """Generations that ended by their length."""
    lines = gateway.get("/metrics").text.splitlines()
    wanted = [
        one for one in lines if one.startswith("vllm:request_success_total{") and 'finished_reason="length"' in one
    ]
    return sum(float(one.rsplit(" ", 1)[1]) for one in wanted)


def test_a_client_that_leaves_frees_the_engine(gateway):
    """A generation that were not ended would be counted as finished by its length."""
    time.sleep(POLL_S)
    finished = by_length(gateway)
    body = {"model": "mlp", "messages": say("a"), "ignore_eos": True, "n": 4}
    with httpx.Client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        for stream, timeout_s in ((True, 30), (False, 0.1)):
            url = gateway.url + "/v1/chat/completions"
            asked = client.build_request("POST", url, json=body | {"stream": stream}, timeout=timeout_s)
            with contextlib.suppress(httpx.ReadTimeout):
                client.send(asked, stream=True).close()
    time.sleep(POLL_S)
    until(lambda: metric(gateway, "vllm:num_requests_running") == 0 == metric(gateway, "vllm:kv_cache_usage_perc"), 5)
    assert by_length(gateway) == finished


def test_the_websocket_says_what_http_says(gateway):
    body = {"model": "mlp", "messages": say("two and two"), "temperature": 0, "max_tokens": 12}
    told = events(post(gateway, **body, stream=True).text)
    with connect(
        gateway.url.replace("http", "ws") + "/v2/stream", additional_headers={"Authorization": f"Bearer {KEY}"}
    ) as socket:
        socket.send(json.dumps({"type": "chat", "id": "1", "body": body}))
        frames = []
        while (frame := json.loads(socket.recv(timeout=20)))["type"] == "chunk":
            frames.append(frame["data"])
    assert frame["type"] == "done"

    def text(chunks):
        return "".join(one["choices"][0]["delta"].get("content", "") for one in chunks)

    assert text(frames) == text(told)


def test_the_engines_sums_are_in_the_metrics(client, gateway):
    before = metric(gateway, "vllm:generation_tokens_total")
    made = client.completions.create(model="mlp", prompt="two", max_tokens=9, extra_body={"ignore_eos": True})
    assert made.usage.completion_tokens == 9
    until(lambda: metric(gateway, "vllm:generation_tokens_total") >= before + 9, 5)
    assert metric(gateway, "vllm:time_to_first_token_seconds_count") >= 1
    before = {name: metric(gateway, f"vllm:{name}_count") for name in PER_REQUEST}
    tokens = metric(gateway, "vllm:request_generation_tokens_sum")
    client.completions.create(model="mlp", prompt="two", max_tokens=9, extra_body={"ignore_eos": True})
    for name, count in before.items():
        until(lambda name=name, count=count: metric(gateway, f"vllm:{name}_count") == count + 1, 5)
    assert metric(gateway, "vllm:request_generation_tokens_sum") == tokens + 9
    assert metric(gateway, "vllm:request_queue_time_seconds_sum") < metric(
        gateway, "vllm:e2e_request_latency_seconds_sum"
    )
