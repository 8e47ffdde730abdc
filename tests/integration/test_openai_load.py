"""A load as aiperf and `vllm bench serve` send it, on an engine with little memory: what they start with, what they read from
the streams, and each of vLLM's metrics afterwards.
"""

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from itertools import pairwise

import httpx
import openai
import pytest
from tokenizers import Tokenizer

from inference.gateway import exposition_language
from tests.support import language
from tests.support.gateway_house import until
from tests.support.openai_house import KEY, post, say
from tests.support.real_language import served

BLOCK, BLOCKS = 8, 64
BLOCK_BYTES = 1024  # 2 layers, keys and values, 2 heads of 8, 8 tokens, 2 bytes: bfloat16
SETTINGS = {
    "max_num_seqs": 4, "block_size": BLOCK, "cache_bytes": BLOCKS * BLOCK_BYTES, "offload_bytes": 256 * BLOCK_BYTES,
    "kv_cache_dtype": "bfloat16", "speculation": {"method": "ngram", "tokens": 3, "shortest_match": 1},
}  # fmt: skip
CALLER = {"Authorization": f"Bearer {KEY}"}
REQUESTS, ABREAST, INPUT, OUTPUT = 24, 4, 40, 12
WORDS = ["the", "canary", "sang", "in", "a", "window", "of", "kitchen", "two", "and", "values"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("load")
    language.folder(found / "m")
    return found


@pytest.fixture(scope="module")
def house(folder):
    with served(folder, {"generation": SETTINGS}) as found:
        yield found


@pytest.fixture
def gateway(house):
    return house.gateways[0]


@pytest.fixture(scope="module")
def tokenizer(folder):
    """A local one, as such tools have it."""
    return Tokenizer.from_file(str(folder / "m" / "tokenizer.json"))


def prompts(tokenizer, count, size):
    """Texts of exactly so many tokens."""
    mind, found = random.Random(3), []
    while len(found) < count:
        text = ""
        while len(tokenizer.encode(text).ids) < size:
            text += mind.choice(WORDS) + " "
        ids = tokenizer.encode(text).ids[:size]
        text = tokenizer.decode(ids)
        if len(tokenizer.encode(text).ids) == size:
            found.append(text)
    return found


@dataclass
class Seen:
    """What a tool reads from one stream. at: when each chunk with text came, in s from the request on."""

    at: list[float] = field(default_factory=list)
    usage: dict[str, int] = field(default_factory=dict)
    text: str = ""
    done: bool = False


async def ask(client, number, prompt):
    """The body and headers of aiperf's chat endpoint; events are split at blank lines, as `vllm bench serve` does."""
    body = {
        "model": "mlp", "messages": say(prompt), "stream": True, "stream_options": {"include_usage": True},
        "max_completion_tokens": OUTPUT, "ignore_eos": True,
    }  # fmt: skip
    headers = {
        "X-Request-ID": f"r-{number}",
        "X-Correlation-ID": f"c-{number}",
        "X-Session-Affinity": f"s-{number % 3}",
    }
    seen, rest, began = Seen(), b"", time.perf_counter()
    async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["x-request-id"] == f"r-{number}"
        async for piece in answer.aiter_raw():
            *whole, rest = (rest + piece).split(b"\n\n")
            for event in whole:
                data = event.removeprefix(b"data: ")
                if data == b"[DONE]":
                    seen.done = True
                    continue
                chunk = json.loads(data)
                if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    seen.at.append(time.perf_counter() - began)
                    seen.text += chunk["choices"][0]["delta"]["content"]
                seen.usage = chunk.get("usage") or seen.usage
    assert rest == b""
    return seen


async def load(gateway, asked):
    """All of them, ABREAST at once."""
    seats = asyncio.Semaphore(ABREAST)
    async with httpx.AsyncClient(base_url=gateway.url, headers=CALLER, timeout=60) as client:

        async def one(number, prompt):
            async with seats:
                return await ask(client, number, prompt)

        return await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(asked)))


def samples(gateway):
    """Every sample of /metrics: (name, labels) -> value."""
    lines = [one for one in gateway.get("/metrics").text.splitlines() if one and not one.startswith("#")]
    return {one.rsplit(" ", 1)[0]: float(one.rsplit(" ", 1)[1]) for one in lines}


def settled(gateway):
    """The samples, once what other tests did is all told: gateways ask their replicas once a second."""
    time.sleep(1.2)
    return samples(gateway)


def total(found, name):
    return sum(value for sample, value in found.items() if sample.split("{")[0] == name)


def test_the_tools_first_calls_are_answered(gateway):
    with httpx.Client(base_url=gateway.url) as client:
        assert client.head("/metrics").status_code == 401  # they send no key there, and go on
        answer = client.head("/metrics", headers=CALLER)
        assert (answer.status_code, answer.content) == (200, b"")
        assert client.get("/metrics", headers=CALLER).headers["content-type"].startswith("text/plain")


def test_a_load_is_answered_to_the_token_and_counted_as_it_was(gateway, tokenizer):
    asked = prompts(tokenizer, REQUESTS, INPUT)
    before = settled(gateway)
    seen = asyncio.run(load(gateway, asked))
    assert all(one.done for one in seen)
    for prompt, one in zip(asked, seen, strict=True):
        chat = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        assert one.usage["prompt_tokens"] == len(tokenizer.encode(chat).ids)
        assert one.usage["completion_tokens"] == OUTPUT
        assert 0 < one.at[0] <= one.at[-1]
        assert all(first <= second for first, second in pairwise(one.at))
    made = REQUESTS * OUTPUT
    until(lambda: total(samples(gateway), "vllm:generation_tokens_total")
          >= total(before, "vllm:generation_tokens_total") + made, 10)  # fmt: skip
    after = samples(gateway)
    moved = {name: total(after, name) - total(before, name) for name in (
        "vllm:generation_tokens_total", "vllm:prompt_tokens_total", "vllm:request_success_total",
        "vllm:time_to_first_token_seconds_count", "vllm:e2e_request_latency_seconds_count",
        "vllm:request_queue_time_seconds_count", "vllm:request_generation_tokens_sum",
    )}  # fmt: skip
    assert moved == {
        "vllm:generation_tokens_total": made,
        "vllm:prompt_tokens_total": sum(one.usage["prompt_tokens"] for one in seen),
        "vllm:request_success_total": REQUESTS,
        "vllm:time_to_first_token_seconds_count": REQUESTS,
        "vllm:e2e_request_latency_seconds_count": REQUESTS,
        "vllm:request_queue_time_seconds_count": REQUESTS,
        "vllm:request_generation_tokens_sum": made,
    }
    # what the engine says of the time to the first token is within what the clients saw
    name = "vllm:time_to_first_token_seconds_sum"
    assert 0 < total(after, name) - total(before, name) <= sum(one.at[0] for one in seen)


def names():
    """vLLM's names as they stand in /metrics."""
    kinds = exposition_language
    found = {one.vllm for one in kinds._GAUGES}
    found |= {f"{one.vllm}_total" for one in kinds._COUNTERS if one.vllm}
    return found | {f"{one.vllm}_count" for one in kinds._TIMES} | {"vllm:request_success_total"}


def test_each_of_vllms_names_is_moved_by_requests(gateway):
    """Eight long choices on memory for two and a half of them, which repeat themselves."""
    assert {"vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:prefix_cache_hits_total",
            "vllm:prefix_cache_queries_total", "vllm:num_preemptions_total"} <= names()  # fmt: skip
    before = settled(gateway)
    most = dict.fromkeys(names(), 0.0)
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        words = "two and " * 12
        for number in range(2):  # the second finds the first one's prefix
            client.completions.create(model="mlp", prompt=words + str(number), max_tokens=8)
        stream = client.completions.create(
            model="mlp",
            prompt=words,
            n=8,
            temperature=0.3,
            max_tokens=200,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        looked = 0.0
        for _ in stream:
            if time.monotonic() > looked + 0.5:
                looked = time.monotonic()
                now = samples(gateway)
                most = {name: max(value, total(now, name)) for name, value in most.items()}
    until(lambda: total(samples(gateway), "vllm:num_requests_running") == 0, 10)
    after = samples(gateway)
    still = [
        name
        for name in names()
        if (most[name] <= 0 if name in {one.vllm for one in exposition_language._GAUGES}
            else total(after, name) <= total(before, name))
    ]  # fmt: skip
    assert still == []
    assert total(after, "vllm:kv_cache_usage_perc") == 0
    assert most["vllm:kv_cache_usage_perc"] <= 1


def test_a_cold_prefix_comes_back_from_the_host(gateway):
    """More distinct blocks than the cache has lie between two requests with the same prompt."""

    def cached(seed, size=120):
        mind = random.Random(seed)
        prompt = [mind.randrange(3, 300) for _ in range(size)]
        usage = post(gateway, "/v1/completions", model="mlp", prompt=prompt, max_tokens=1).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert cached(1) == 0
    between = range(10, 20)
    assert len(between) * 120 // BLOCK > 2 * BLOCKS, "enough to drive it out"
    assert [cached(seed) for seed in between] == [0] * len(between)
    assert cached(1) >= 120 - 2 * BLOCK


def test_the_cache_has_the_dtype_and_size_that_its_version_asks_for(house, folder):
    """As the replica's log has it: what `cache_bytes` holds in bfloat16 is twice of what it would in float32."""
    log = (folder / "r" / "log").read_text()
    assert f"{BLOCKS} blocks of {BLOCK} tokens, {BLOCKS * BLOCK_BYTES} bytes, for keys and values" in log
