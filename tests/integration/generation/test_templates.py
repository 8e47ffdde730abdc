"""Prompts are those of transformers; a template that never ends, or fills the memory, is stopped and said to be so."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from inference.errors import InvalidInput
from inference.generation.sandbox import TemplateLimits
from inference.generation.templates import CHATML_NOTE, ChatTemplate, ChatTemplates
from inference.protocol.generation import Chat

FOLDER = Path(__file__).resolve().parents[2] / "data" / "chat_templates"
SOURCES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.jinja"))}
MARKS = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = {name: ChatTemplate(source, special_tokens=MARKS) for name, source in SOURCES.items()}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "It's <b>",
        "parameters": {"type": "object", "properties": {"é": {}}},
    },
}
CALLED = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Wie ist's in Paris?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "call_123", "type": "function", "function": {"name": "get_weather", "arguments": {"é": 1}}}
        ],
    },
    {"role": "tool", "content": '{"sun": true}', "tool_call_id": "call_123"},
    {"role": "user", "content": "And then?"},
]
SPOKEN = st.text(st.sampled_from("ab é日<>&'\"{}%#\n🙂\\") | st.characters(exclude_categories=["Cs"]), max_size=20)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": SPOKEN}),
    min_size=1,
    max_size=5,
)
each = pytest.mark.parametrize("name", sorted(SOURCES))


def theirs(name, chat: Chat) -> str:
    return render_jinja_template(
        [chat.messages],
        tools=chat.tools or None,
        chat_template=SOURCES[name],
        add_generation_prompt=chat.add_generation_prompt,
        continue_final_message=chat.continue_final_message,
        **MARKS,
        **chat.template_arguments,
    )[0][0]


@each
@settings(max_examples=60, deadline=None)
@given(messages=MESSAGES, prompt=st.booleans(), tools=st.sampled_from([[], [WEATHER], [WEATHER, WEATHER]]))
def test_as_transformers(name, messages, prompt, tools):
    chat = Chat(messages, tools=tools, add_generation_prompt=prompt)
    assert TEMPLATES[name].render(chat) == theirs(name, chat)


@each
@pytest.mark.parametrize(
    "arguments", [{}, {"enable_thinking": False, "date_string": "1 Jan 2030"}], ids=["plain", "arguments"]
)
def test_calls_tools_and_arguments_as_transformers(name, arguments):
    chat = Chat(CALLED, tools=[WEATHER], template_arguments=arguments)
    text = TEMPLATES[name].render(chat)
    assert text == theirs(name, chat)
    assert "Paris" in text


@each
@pytest.mark.parametrize("content", ["It is", "It is  "], ids=["tight", "spaced"])
def test_a_final_message_is_continued_as_transformers_does(name, content):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]
    chat = Chat(messages, add_generation_prompt=False, continue_final_message=True)
    text = TEMPLATES[name].render(chat)
    assert text == theirs(name, chat)
    assert text.endswith("It is" if text.endswith("is") else content)


def test_parts_of_text_are_passed_on_or_joined():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    chat = Chat([{"role": "user", "content": parts}])
    assert TEMPLATES["qwen"].iterates_content
    assert TEMPLATES["qwen"].render(chat) == theirs("qwen", chat)
    assert not TEMPLATES["chatml"].iterates_content
    assert "one\ntwo<|im_end|>" in TEMPLATES["chatml"].render(chat)
    only = ChatTemplate("{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}")
    assert only.render(Chat([{"role": "user", "content": "whole"}])) == "[whole]"


def test_arguments_that_are_a_string_of_json_are_read():
    call = {"type": "function", "function": {"name": "f", "arguments": '{"é": 1}'}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert '"parameters": {"é": 1}' in TEMPLATES["llama3"].render(Chat(messages))
    assert messages[1]["content"] is None


def test_tools_are_left_out_where_none_may_be_called():
    chat = Chat([{"role": "user", "content": "x"}], tools=[WEATHER], tool_choice="none")
    assert "get_weather" not in TEMPLATES["qwen"].render(chat)


def test_a_model_without_a_template_speaks_chatml_and_says_so():
    templates = ChatTemplates("")
    assert templates.notes == [CHATML_NOTE]
    assert templates.render(Chat([{"role": "user", "content": "hi"}])) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_of_several_templates_the_one_for_tools_is_used_for_tools():
    templates = ChatTemplates({"default": "plain", "tool_use": "tools"})
    assert templates.notes == []
    assert templates.render(Chat([{"role": "user", "content": "x"}])) == "plain"
    assert templates.render(Chat([{"role": "user", "content": "x"}], tools=[WEATHER])) == "tools"


def test_a_template_comes_with_a_request_only_where_that_is_trusted():
    chat = Chat([{"role": "user", "content": "x"}], template="mine")
    with pytest.raises(InvalidInput, match="model's version"):
        ChatTemplates("theirs").render(chat)
    assert ChatTemplates("theirs", trust_request=True).render(chat) == "mine"


def refused(source: str, words: str, chat: Chat | None = None, limits: TemplateLimits | None = None) -> None:
    with pytest.raises(InvalidInput, match=words):
        ChatTemplate(source, limits=limits).render(chat or Chat([{"role": "user", "content": "x"}]))


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        (Chat([{"content": "x"}]), "role"),
        (Chat([{"role": "user", "content": 3}]), "string or a list"),
        (Chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]), "image_url"),
        (Chat([{"role": "user", "content": "x"}], template_arguments={"chat_template": "x"}), "chat_template"),
        (Chat([{"role": "user", "content": "x"}], template_arguments={"messages": []}), "messages"),
        (Chat([{"role": "user", "content": "x"}], template_arguments={"x": b"x"}), "bytes"),
        (Chat([{"role": "user", "content": "x"}], continue_final_message=True), "add_generation_prompt"),
        (Chat([], add_generation_prompt=False, continue_final_message=True), "final message"),
    ],
    ids=range(8),
)
def test_chats_that_cannot_be_written(chat, words):
    refused(SOURCES["chatml"], words, chat)


def test_the_templates_own_words_reach_the_caller():
    with pytest.raises(InvalidInput, match="Only user, assistant and tool roles are known, not critic"):
        TEMPLATES["mistral"].render(Chat([{"role": "critic", "content": "x"}]))


HOSTILE = {
    "nested_loops": "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "macro_for_ever": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "huge_range": "{% for a in range(10**12) %}{% endfor %}",
    "repeated": "{{ 'a' * 10**9 }}",
    "repeated_list": "{{ [['x' * 1000000] * 1000000] }}",
    "doubled": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubled_tilde": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubled_block": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set x %}{{ n.s }}{{ n.s }}{% endset %}"
    "{% set n.s = x %}{% endfor %}",
    "doubled_list": "{% set n = namespace(s=[1, 2]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "filter_center": "{{ 'a' | center(10**9) }}",
    "filter_indent": "{{ 'a\nb' | indent(10**9) }}",
    "filter_batch": "{{ [1] | batch(10**9, 'x') | list | length }}",
    "filter_join": "{{ (['x' * 8000000] * 1000) | join }}",
    "filter_replace": "{{ ('x' * 1000000) | replace('', 'y' * 1000000) }}",
    "filter_tojson": "{{ (['x' * 8000000] * 1000) | tojson | length }}",
    "filter_format": "{{ '%999999999d' | format(1) }}",
    "filter_string": "{{ [['x' * 8000000] * 1000] | string | length }}",
    "method_replace": "{{ ('x' * 1000000).replace('', 'y' * 1000000) }}",
    "method_format": "{{ '{:1000000000}'.format(1) }}",
    "method_join": "{{ ''.join(['x' * 8000000] * 1000) }}",
    "method_ljust": "{{ 'a'.ljust(10**9) }}",
    "method_zfill": "{{ 'a'.zfill(10**9) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent_star": "{{ '%*d' % (1000000000, 1) }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "much_text": "{% for a in range(90000) %}" + "x" * 400 + "{% endfor %}",
    "lipsum": "{{ lipsum(10**9) }}",
    "include": "{% include '/etc/passwd' %}",
    "dunder": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "format_dunder": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "globals": "{{ raise_exception.__globals__['json'] }}",
    "mutation": "{{ messages.append(1) }}",
    "namespace_dunder": "{% set n = namespace(__class__=1) %}",
    "unclosed": "{% for",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "deep_minus": "{{ " + "-" * 5000 + "1 }}",
    "too_long": "x" * ((1 << 18) + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_soon_and_in_words(name):
    begins = time.monotonic()
    refused(HOSTILE[name], "chat template")
    assert time.monotonic() - begins < 5


def test_the_clock_ends_what_the_count_does_not():
    source = "{% for a in range(90000) %}{{ (range(90000) | list | string) | length }}{% endfor %}"
    begins = time.monotonic()
    refused(source, "longer than 0.3 s", limits=TemplateLimits(seconds=0.3))
    assert time.monotonic() - begins < 2


def test_a_long_chat_is_well_within_the_bounds():
    messages = [{"role": ("user", "assistant")[at % 2], "content": "word " * 100} for at in range(4000)]
    begins = time.monotonic()
    text = TEMPLATES["qwen"].render(Chat(messages))
    assert text == theirs("qwen", Chat(messages))
    assert time.monotonic() - begins < 5
