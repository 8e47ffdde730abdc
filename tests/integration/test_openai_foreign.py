"""Fields of vLLM and others at a real gateway: each is honoured, or refused by its name; none is ignored silently."""

import json

import pytest

from inference.gateway.openai import foreign
from inference.protocol import openai as bodies
from tests.support import openai_house
from tests.support.openai_house import error, events, post, say

house, gateway, replica, client = openai_house.fixtures()
ASKS = {
    "use_beam_search": True, "allowed_token_ids": [1], "truncate_prompt_tokens": 5, "logits_processors": ["x"],
    "logprob_token_ids": [1], "spaces_between_special_tokens": False, "thinking_token_budget": 8,
    "repetition_detection": {"min_count": 3}, "watermarking": True, "prompt_embeds": "AAAA",
    "return_tokens_as_token_ids": True, "return_prompt_text": True, "guided_whitespace_pattern": " ",
    "kv_transfer_params": {"a": 1}, "ec_transfer_params": {"a": 1}, "vllm_xargs": {"a": 1}, "n": 2, "echo": True,
    "prompt_logprobs": 0, "return_token_ids": True, "add_generation_prompt": False, "continue_final_message": True,
    "documents": [{"text": "x"}], "enable_response_messages": True, "previous_input_messages": say("x"),
    "previous_response": {"id": "resp_1"}, "max_tokens_per_doc": 5, "normalize": False, "use_activation": False,
    "add_special_tokens": False, "embed_dtype": "float16", "endianness": "big", "messages": say("x"), "instruction": "x",
}  # fmt: skip
DOORS = {
    "/v1/chat/completions": ({"model": "lm", "messages": say("a")}, foreign.GENERATION, bodies.ChatBody),
    "/v1/completions": ({"model": "lm", "prompt": "a"}, foreign.GENERATION, bodies.CompletionBody),
    "/v1/responses": ({"model": "lm", "input": "a"}, foreign.GENERATION | foreign.RESPONSES, bodies.ResponseBody),
    "/v1/embeddings": ({"model": "text", "input": "a"}, foreign.EMBEDDINGS, bodies.EmbeddingBody),
    "/v1/score": ({"model": "text", "text_1": "a", "text_2": "b"}, foreign.EMBEDDINGS, bodies.ScoreBody),
    "/v1/rerank": ({"model": "text", "query": "a", "documents": ["b"]}, foreign.EMBEDDINGS, bodies.RerankBody),
}
# contracts.md 1.4 names these.
NAMED = [
    "top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "bad_words",
    "structured_outputs", "chat_template", "chat_template_kwargs", "prompt_logprobs", "priority", "cache_salt", "echo",
    "add_generation_prompt", "continue_final_message", "return_token_ids",
]  # fmt: skip
CHATS_ONLY = {"chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"}


@pytest.mark.parametrize("path", DOORS)
def test_what_is_not_served_is_refused_by_name_and_what_asks_for_nothing_passes(gateway, path):
    body, table, _ = DOORS[path]
    for name, (nothing, words) in table.items():
        told = error(post(gateway, path, **body, **{name: ASKS[name]}), 400, "unsupported_parameter", name)
        assert told == f"'{name}' is not supported here: {words}"
        for value in nothing:
            found = post(gateway, path, **body, **{name: value})
            if body["model"] == "text":  # which has no vectors: what the request asks for was taken before
                error(found, 400, "model_not_supported", "model")
            else:
                assert found.status_code == 200, (name, value, found.text)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_every_field_of_vllm_that_is_named_in_the_contract_is_known(path):
    _, table, body = DOORS[path]
    known = set(body.__struct_fields__)
    missing = [name for name in NAMED if name not in known and not (path == "/v1/completions" and name in CHATS_ONLY)]
    assert missing == []
    assert [name for name in table if name not in known] == []


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"audio": {"voice": "x"}}, "audio"), ({"web_search_options": {"a": 1}}, "web_search_options"),
        ({"best_of": 2}, "best_of"), ({"functions": [{"name": "x"}]}, "functions"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"structured_outputs": {"json": {}, "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        ({"structured_outputs": {"json": {}, "disable_any_whitespace": True}}, "structured_outputs.disable_any_whitespace"),
        ({"structured_outputs": {"structural_tag": {}, "json": {}}}, None),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag"),
    ],
)  # fmt: skip
def test_chats_refuse_what_they_cannot_do(gateway, more, param):
    answer = post(gateway, model="lm", messages=say("a"), **more)
    if param is None:  # an empty tag asks for nothing
        assert answer.status_code == 200
    else:
        error(answer, 400, "unsupported_parameter", param)


def test_thoughts_are_left_out_where_they_are_not_wanted(gateway):
    asked = {"model": "lm", "messages": say("think a"), "include_reasoning": False}
    message = post(gateway, **asked).json()["choices"][0]["message"]
    assert (message["content"], "reasoning" in message) == ("think a", False)
    text = post(gateway, **asked, stream=True).text
    assert "reasoning" not in text
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in events(text)) == "think a"
    assert "hm so" in post(gateway, **asked | {"include_reasoning": True}).text


def test_responses_take_vllms_fields(gateway, replica):
    more = {
        "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.25,
        "seed": 4, "stop": ["x"], "stop_token_ids": [7], "bad_words": ["y"], "ignore_eos": True, "min_tokens": 1,
        "logit_bias": {"9": 2}, "include_stop_str_in_output": True, "skip_special_tokens": False, "priority": -3,
        "cache_salt": "mine", "chat_template": "{{ messages }}", "chat_template_kwargs": {"enable_thinking": False},
        "reasoning": {"effort": "low"},
    }  # fmt: skip
    assert post(gateway, "/v1/responses", model="lm", input="a", **more).status_code == 200
    asked = replica.asked[-1]
    chat, sampling = asked.prompt, asked.sampling
    assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty, sampling.seed) == (5, 0.1, 1.1, 4)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.logit_bias) == (0.5, 0.25, {9: 2})
    assert (sampling.stop, sampling.stop_token_ids, sampling.bad_words) == (["x"], [7], ["y"])
    assert (sampling.ignore_eos, sampling.min_tokens) == (True, 1)
    assert (sampling.include_stop, sampling.skip_special_tokens) == (True, False)
    assert (asked.priority, asked.salt) == (-3, "all\0mine")
    assert chat.template == "{{ messages }}"
    assert chat.template_arguments == {"enable_thinking": False, "reasoning_effort": "low"}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert post(
        gateway, "/v1/responses", model="lm", input="json", structured_outputs={"json": schema}
    ).is_success  # fmt: skip
    assert json.loads(replica.asked[-1].sampling.structure.json_schema) == schema
