"""OpenAI's API of a real gateway process: what it refuses, in which form, and what it ends when a client has left."""

import contextlib
import json
import socket
import time

import httpx
import openai
import pytest

from tests.support import openai_house
from tests.support.gateway_house import until
from tests.support.openai_house import KEY, error, events, post, say

house, gateway, replica, client = openai_house.fixtures()


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"), ({"allowed_token_ids": [1]}, "allowed_token_ids"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"), ({"use_beam_search": True}, "use_beam_search"),
        ({"max_tokens": 0}, "max_tokens"), ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"top_k": -2}, "top_k"), ({"min_p": 1.5}, "min_p"), ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"top_logprobs": 3}, "top_logprobs"), ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"n": 0}, "n"), ({"temperature": "hot"}, "temperature"), ({"logit_bias": {"x": 1}}, "logit_bias"),
    ],
)  # fmt: skip
def test_a_field_out_of_its_range_is_refused_by_name(gateway, more, param):
    answer = post(gateway, model="lm", messages=say("a"), **more)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("param", "fits", "past"),
    [
        ("n", 128, 129), ("stop", ["zz"] * 16, ["zz"] * 17), ("stop", ["z" * 1024], ["z" * 1025]),
        ("max_tokens", 1 << 24, (1 << 24) + 1), ("top_logprobs", 20, 21),
        ("logit_bias", {str(n): 1 for n in range(1024)}, {str(n): 1 for n in range(1025)}),
    ],
)  # fmt: skip
def test_at_its_limit_a_field_is_taken_and_one_past_it_refused_by_name(gateway, param, fits, past):
    more = {"logprobs": True} if param == "top_logprobs" else {}
    taken = post(gateway, model="lm", messages=say("a"), **{param: fits}, **more)
    assert taken.status_code == 200, taken.text[:300]
    refused = post(gateway, model="lm", messages=say("a"), **{param: past}, **more)
    assert refused.status_code == 400, refused.text[:300]
    assert refused.json()["error"]["param"] == param


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


def test_no_client_asks_again_where_that_is_of_no_use(gateway, replica):
    before = len(replica.asked)
    more = {"X-Request-Timeout-Ms": "100"}
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=2) as client,
        pytest.raises(openai.InternalServerError) as found,
    ):
        client.chat.completions.create(model="lm", messages=say("wait"), extra_headers=more)
    assert found.value.status_code == 504
    assert found.value.response.headers["x-should-retry"] == "false"
    assert len(replica.asked) == before + 1


def test_a_key_beyond_its_rate_is_told_when_to_come_back(gateway):
    answers = [post(gateway, credential="ser_few.s3", model="lm", messages=say("a")) for _ in range(3)]
    error(answers[-1], 429, "rate_limit_exceeded")
    assert answers[-1].json()["error"]["type"] == "rate_limit_error"
    assert 0 < int(answers[-1].headers["retry-after-ms"]) <= 2000
    assert int(answers[-1].headers["retry-after"]) >= 1


def test_what_finds_no_room_is_refused_at_once(gateway, house):
    """The endpoint takes two requests at a time, prompts of one request included."""
    pieces = []
    with contextlib.ExitStack() as open_ones:
        for _ in range(2):
            body = {"model": "narrow", "messages": say("slow" + " w" * 400), "stream": True}
            stream = httpx.stream("POST", gateway.url + "/v1/chat/completions", json=body,
                                  headers={"Authorization": f"Bearer {KEY}"})  # fmt: skip
            pieces.append(open_ones.enter_context(stream).iter_raw())
            next(pieces[-1])
        began = time.monotonic()
        refused = post(gateway, model="narrow", messages=say("a"), stream=True)
        error(refused, 503, "overloaded")
        assert refused.headers["retry-after"] in {"1", "2"}
        assert time.monotonic() - began < 1
    until(lambda: post(gateway, model="narrow", messages=say("a")).status_code == 200, 2)
    error(post(gateway, "/v1/completions", model="narrow", prompt=["a", "b", "c"]), 503, "overloaded")
    assert post(gateway, "/v1/completions", model="narrow", prompt=["a", "b"]).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "name", "given"),
    [("/v1/chat/completions", "messages", say), ("/v1/completions", "prompt", str), ("/v1/responses", "input", str)],
    ids=["chat", "completion", "response"],
)
def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(gateway, path, name, given, stream):
    words = "w " * 513
    told = error(post(gateway, path, model="lm", stream=stream, **{name: given(words)}), 400, "context_length_exceeded")
    assert "513" in told
    assert "512" in told


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


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        ("/v1/chat/completions", {"messages": say("slow" + " w" * 400), "stream": True}, 1),
        ("/v1/chat/completions", {"messages": say("wait")}, 1),
        ("/v1/completions", {"prompt": ["wait", "wait b"]}, 2),
        ("/v1/completions", {"prompt": ["slow" + " w" * 400] * 3, "max_tokens": 400, "stream": True}, 3),
        ("/v1/responses", {"input": "wait"}, 1),
        ("/v1/responses", {"input": "slow" + " w" * 400, "stream": True}, 1),
    ],
    ids=["streamed chat", "chat", "two prompts", "three streamed prompts", "response", "streamed response"],
)
def test_whatever_a_client_left_ends(gateway, replica, path, body, count):
    before, asked = len(replica.cancelled), len(replica.asked)
    with (
        httpx.Client(timeout=0.4, headers={"Authorization": f"Bearer {KEY}"}) as client,
        contextlib.suppress(httpx.ReadTimeout),
        client.stream("POST", gateway.url + path, json={"model": "lm"} | body) as response,
    ):
        next(response.iter_raw())
    assert len(replica.asked) == asked + count
    until(lambda: len(replica.cancelled) == before + count, 2)


def settled(replica) -> int:
    """How many events it sent, once half a second brought no more."""
    for _ in range(40):
        before = replica.parts_sent
        time.sleep(0.5)
        if replica.parts_sent == before:
            return before
    pytest.fail("it goes on sending")


def test_a_slow_reader_pauses_only_itself(gateway, replica):
    body = json.dumps({"model": "lm", "messages": say("long"), "max_tokens": 200_000, "stream": True}).encode()
    pauses, before = replica.pauses, replica.parts_sent
    with socket.create_connection(("127.0.0.1", gateway.port)) as peer:
        peer.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + KEY.encode()
                     + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)  # fmt: skip
        until(lambda: replica.pauses > pauses, 10)
        sent = settled(replica)  # once the system's own buffers are full
        assert post(gateway, model="lm", messages=say("a b")).json()["choices"][0]["message"]["content"] == "a b"
        time.sleep(0.2)
        assert replica.parts_sent - sent <= 1
        assert sent - before < 100_000
    until(lambda: not [one for one in replica.peers for task in one.streams.values() if not task.done()], 5)
