"""Each field of sampling does at the engine what its name says: the official client, a real gateway, a real replica of a tiny
random Llama. tests/integration/test_openai_foreign.py has those that are refused.
"""

import json
import threading
import time

import openai
import pytest

from tests.support import language
from tests.support.openai_house import KEY, post, say
from tests.support.real_language import doors, served

END = 2  # <|im_end|>
SEATS = 8
SETTINGS = {"max_num_seqs": SEATS, "block_size": 8, "trust_request_chat_template": True}
GREEDY = {"model": "mlp", "prompt": "two and two", "temperature": 0, "max_tokens": 24}
BIRD = "grüße, 你好 🐤 und STOP da"


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    root = tmp_path_factory.mktemp("fields")
    language.folder(root / "m")
    with served(root, {"generation": SETTINGS}) as found:
        yield found


gateway, client = doors()


def complete(client, *, more=None, **fields):
    """The one choice, with its token ids."""
    extra = {"return_token_ids": True, "ignore_eos": True} | (more or {})
    return client.completions.create(**GREEDY | fields, extra_body=extra).choices[0]


def pieces(client, *, more=None, **fields):
    """The texts of a stream's chunks, and its last choice."""
    stream = client.completions.create(**GREEDY | fields, stream=True, extra_body=more or {})
    choices = [chunk.choices[0] for chunk in stream]
    return [one.text for one in choices], choices[-1]


# --- which token comes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{"top_k": 1}, {"min_p": 1.0}])
def test_what_leaves_one_token_is_greedy_at_any_temperature(client, more):
    wanted = complete(client).token_ids
    assert complete(client, temperature=2, more=more).token_ids == wanted
    assert complete(client, temperature=2, top_p=1e-6).token_ids == wanted
    assert complete(client, temperature=2, seed=1).token_ids != wanted


def test_a_repetition_penalty_keeps_what_was_said_from_coming_again(client):
    plain = complete(client, max_tokens=100).token_ids
    assert len(set(plain)) < 100, "the model repeats itself"
    penalised = complete(client, max_tokens=100, more={"repetition_penalty": 100.0})
    assert len({*penalised.token_ids, *penalised.prompt_token_ids}) == 100 + len(set(penalised.prompt_token_ids))


def test_bad_words_never_come(client, gateway):
    first = complete(client).token_ids
    word = post(gateway, "/detokenize", model="mlp", tokens=first[:1]).json()["prompt"]
    other = complete(client, more={"bad_words": [word]}).token_ids
    assert first[0] not in other
    assert other[0] != first[0]


def test_a_bias_decides_and_an_end_may_be_ignored(client):
    ends = {"logit_bias": {str(END): 100}}
    found = complete(client, **ends, more={"ignore_eos": False})
    assert (found.finish_reason, found.text, found.token_ids) == ("stop", "", [END])
    assert complete(client, **ends).finish_reason == "length"
    found = complete(client, **ends, more={"ignore_eos": False, "min_tokens": 5})
    assert len(found.token_ids) >= 5


def test_a_token_may_end_it_and_not_before_so_many(client):
    made = complete(client).token_ids
    at = next(at for at in range(3, 24) if made[at] not in made[:at])
    found = complete(client, more={"stop_token_ids": [made[at]]})
    assert (found.token_ids, found.finish_reason, found.stop_reason) == (made[: at + 1], "stop", made[at])
    found = complete(client, more={"stop_token_ids": [made[at]], "min_tokens": at + 4})
    assert len(found.token_ids) >= at + 4


# --- texts ------------------------------------------------------------------------------------------------------------


def choice_of(text):
    """The text comes, token by token, whatever the model would rather say."""
    return {"structured_outputs": {"choice": [text]}}


def test_a_character_of_many_tokens_comes_whole_or_not_at_all(client, gateway):
    count = post(gateway, "/tokenize", model="mlp", prompt=BIRD, add_special_tokens=False).json()["count"]
    assert count > len(BIRD), "characters are split over tokens"
    texts, last = pieces(client, max_tokens=200, more=choice_of(BIRD))
    assert "".join(texts) == BIRD
    assert len(texts) > 10
    assert not any("\ufffd" in text for text in texts)
    assert last.finish_reason == "stop"


@pytest.mark.parametrize(
    ("stop", "kept", "included"),
    [("P d", "grüße, 你好 🐤 und STO", "P d"), ("你好", "grüße, ", "你好"), ("好 🐤", "grüße, 你", "好 🐤")],
)
def test_a_stop_text_holds_across_tokens_and_characters(client, stop, kept, included):
    fields = {"max_tokens": 200, "stop": [stop]}
    texts, last = pieces(client, **fields, more=choice_of(BIRD))
    assert "".join(texts) == kept
    assert (last.finish_reason, last.stop_reason) == ("stop", stop)
    whole = client.completions.create(**GREEDY | fields, extra_body=choice_of(BIRD)).choices[0]
    assert (whole.text, whole.stop_reason) == (kept, stop)
    more = choice_of(BIRD) | {"include_stop_str_in_output": True}
    assert "".join(pieces(client, **fields, more=more)[0]) == kept + included


def test_token_ids_are_those_of_the_text(client, gateway):
    found = complete(client, more={"skip_special_tokens": False})
    assert post(gateway, "/detokenize", model="mlp", tokens=found.token_ids).json()["prompt"] == found.text
    assert post(gateway, "/detokenize", model="mlp", tokens=found.prompt_token_ids).json()["prompt"] == "two and two"


def test_special_tokens_stand_in_the_text_where_that_is_wanted(client):
    fields = {"logit_bias": {"1": 100}, "max_tokens": 2}
    assert complete(client, **fields).text == ""
    assert complete(client, **fields, more={"skip_special_tokens": False}).text == "<|im_start|><|im_start|>"


def test_the_prompts_tokens_have_their_probabilities(client):
    found = client.completions.create(**GREEDY, extra_body={"prompt_logprobs": 2, "return_token_ids": True}).choices[0]
    first, *rest = found.prompt_logprobs
    assert first is None
    assert len(rest) == len(found.prompt_token_ids) - 1
    for token, told in zip(found.prompt_token_ids[1:], rest, strict=True):
        assert 2 <= len(told) <= 3
        assert told[str(token)]["logprob"] < 0


def test_the_best_of_several_is_the_likeliest(client):
    fields = {"prompt": "The canary", "temperature": 1.5, "seed": 7, "max_tokens": 12, "model": "mlp", "logprobs": 0}
    every = client.completions.create(**fields, n=4).choices
    means = [sum(one.logprobs.token_logprobs) / len(one.logprobs.token_logprobs) for one in every]
    ranked = [every[at].text for at in sorted(range(4), key=lambda at: -means[at])]
    assert len(set(ranked)) == 4
    found = client.completions.create(**fields, n=2, best_of=4)
    assert [one.text for one in found.choices] == ranked[:2]
    assert found.usage.completion_tokens == sum(len(one.logprobs.tokens) for one in every)
    with pytest.raises(openai.BadRequestError, match="cannot be streamed"):
        client.completions.create(**fields, n=1, best_of=4, stream=True)
    with pytest.raises(openai.BadRequestError, match="at least 'n'"):
        client.completions.create(**fields, n=4, best_of=2)


# --- structure --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "holds"),
    [
        ({"json": {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
                   "additionalProperties": False}}, lambda text: json.loads(text)["a"] in {1, 2}),
        ({"json_object": True}, lambda text: isinstance(json.loads(text), dict)),
        ({"regex": "(red|blue)[0-9]{2}"}, lambda text: text[:-2] in {"red", "blue"} and text[-2:].isdigit()),
        ({"choice": ["yes", "no"]}, lambda text: text in {"yes", "no"}),
        ({"grammar": 'start: "x" (" y")*'}, lambda text: text[0] == "x" and set(text[1:].split()) <= {"y"}),
    ],
    ids=["json", "json_object", "regex", "choice", "grammar"],
)  # fmt: skip
def test_each_kind_of_structure_is_kept_by_each_of_its_names(client, given, holds):
    kind = next(iter(given))
    ways = [{"structured_outputs": given}]
    if kind != "json_object":
        ways.append({f"guided_{kind}": given[kind]})
    for way in ways:
        for seed in (1, 2):
            found = client.completions.create(
                model="mlp",
                prompt="a",
                max_tokens=400,
                temperature=1,
                seed=seed,
                logit_bias={str(END): 4},
                extra_body=way,
            ).choices[0]
            assert found.finish_reason == "length" or holds(found.text), found.text


# --- chats ------------------------------------------------------------------------------------------------------------


def prompt_of(gateway, **more):
    """What the model was asked, as text."""
    body = {"model": "mlp", "messages": say("hi"), "max_tokens": 1, "return_token_ids": True} | more
    answer = post(gateway, **body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    told = post(gateway, "/detokenize", model="mlp", tokens=found["prompt_token_ids"]).json()["prompt"]
    return told, found["choices"][0]["message"]["content"]


def test_the_template_is_the_models_or_the_requests(gateway):
    assert prompt_of(gateway)[0] == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_of(gateway, add_generation_prompt=False)[0] == "<|im_start|>user\nhi<|im_end|>\n"
    template = "{{ messages[0].content }}{% if loud %}!{% endif %}"
    assert prompt_of(gateway, chat_template=template)[0] == "hi"
    assert prompt_of(gateway, chat_template=template, chat_template_kwargs={"loud": True})[0] == "hi!"


def test_a_final_message_is_continued_and_repeated(gateway):
    messages = [*say("hi"), {"role": "assistant", "content": "well, two"}]
    more = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False, "temperature": 0}
    prompt, said = prompt_of(gateway, **more)
    assert prompt.endswith("<|im_start|>assistant\nwell, two")
    _, echoed = prompt_of(gateway, **more, echo=True)
    assert echoed == "well, two" + said


# --- whose turn it is, and what is kept -------------------------------------------------------------------------------


def test_prefixes_are_shared_within_a_salt_and_a_key(client, gateway):
    def cached(credential=KEY, **more):
        body = {"model": "mlp", "prompt": "two and two and two and two and two and two", "max_tokens": 1} | more
        usage = post(gateway, "/v1/completions", credential=credential, **body).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert [cached(cache_salt="a") for _ in range(2)] == [0, cached(cache_salt="a")]
    assert cached(cache_salt="a") > 0
    assert cached(cache_salt="b") == 0
    assert cached(credential="ser_one.s1", cache_salt="a") == 0


def test_a_smaller_number_goes_first(client, gateway):
    """All seats are taken for a while; who waits for the first one that is free goes by priority."""
    ended, are_under_way = [], threading.Semaphore(0)

    def ask(name, priority, n, tokens):
        more, begun = {"priority": priority, "ignore_eos": True}, False
        for _ in client.completions.create(
            model="mlp", prompt=name, n=n, max_tokens=tokens, stream=True, extra_body=more
        ):
            if not begun:
                are_under_way.release()
            begun = True
        ended.append(name)

    asks = [("runs", 0, SEATS - 1, 500), ("brief", 0, 1, 300)]
    asks += [("late", 9, 1, 30), ("later", 5, 1, 30), ("first", 1, 1, 30)]
    threads = [threading.Thread(target=ask, args=one) for one in asks]
    for thread in threads[:2]:
        thread.start()
    assert are_under_way.acquire(timeout=20)
    assert are_under_way.acquire(timeout=20)
    for thread in threads[2:]:
        thread.start()
        time.sleep(0.02)
    assert ended == []
    for thread in threads:
        thread.join(60)
    assert ended == ["brief", "first", "later", "late", "runs"]
