"""Calls come out of a text the same, however it was split; what is no call stays text; forced calls can be read back."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import InvalidInput
from inference.generation.detokenizer import Decoders, Detokenizer
from inference.generation.formatter import Choice
from inference.generation.grammar import Grammars
from inference.generation.reasoning import Reasoning, opens_reasoning, reasoning_parser_for
from inference.generation.tool_grammar import chosen_tools, forced_parser, tool_structure
from inference.generation.tools import mark_ids, tool_parser, tool_parser_for
from tests.support.vocabularies import END, byte_level

PARIS, ROME = '{"city": "Paris", "days": [1, {"a": "}]\\\\\\""}]}', '{"city":"Rome"}'
NAMES = ["get_weather", "ping"]


def hermes(arguments, name="get_weather"):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def llama(arguments, name="get_weather"):
    return f'{{"name": "{name}", "parameters": {arguments}}}'


def mistral(*arguments, name="get_weather"):
    return "[TOOL_CALLS] [" + ", ".join(f'{{"name": "{name}", "arguments": {one}}}' for one in arguments) + "]"


GET = "get_weather"
# parser, what the model wrote, the text and the calls that are in it
CASES = {
    "hermes_one": ("hermes", hermes(PARIS), "", [(GET, PARIS)]),
    "hermes_after_text": ("hermes", f"I look.\n{hermes(PARIS)}", "I look.", [(GET, PARIS)]),
    "hermes_two": ("hermes", f"{hermes(PARIS)}\n{hermes(ROME)}", "", [(GET, PARIS), (GET, ROME)]),
    "hermes_text_between": (
        "hermes",
        f"{hermes(PARIS)} and {hermes(ROME)} end",
        " and end",
        [(GET, PARIS), (GET, ROME)],
    ),
    "hermes_unclosed": ("hermes", hermes(PARIS).removesuffix("\n</tool_call>"), "", [(GET, PARIS)]),
    "hermes_arguments_first": (
        "hermes",
        f'<tool_call>{{"arguments": {PARIS}, "name": "{GET}"}}</tool_call>',
        "",
        [(GET, PARIS)],
    ),
    "hermes_arguments_as_text": ("hermes", hermes(json.dumps(ROME)), "", [(GET, ROME)]),
    "hermes_no_arguments": ("hermes", '<tool_call>{"name": "ping"}</tool_call>', "", [("ping", "{}")]),
    "hermes_null_arguments": ("hermes", hermes("null", "ping"), "", [("ping", "{}")]),
    "hermes_unknown_name": ("hermes", hermes(PARIS, "rm"), hermes(PARIS, "rm"), []),
    "hermes_garbage": (
        "hermes",
        f"<tool_call>oh</tool_call>\n{hermes(ROME)}",
        "<tool_call>oh</tool_call>",
        [(GET, ROME)],
    ),
    "hermes_cut_short": ("hermes", '<tool_call>\n{"name": "get_we', '<tool_call>\n{"name": "get_we', []),
    "hermes_plain_text": ("hermes", "a < b <tool> \n", "a < b <tool> \n", []),
    "hermes_cut_in_arguments": ("hermes", hermes('{"city": "Pa').split("Pa")[0] + "P", "", [(GET, '{"city": "P')]),
    "hermes_broken_after_a_part": (
        "hermes",
        f'<tool_call>{{"name": "{GET}", "arguments": {ROME}] x</tool_call>\nso',
        "\nso",
        [(GET, ROME)],
    ),
    "llama3_one": ("llama3", llama(PARIS), "", [(GET, PARIS)]),
    "llama3_tag": ("llama3", f"<|python_tag|>{llama(PARIS)}", "", [(GET, PARIS)]),
    "llama3_two": ("llama3", f"{llama(PARIS)}; {llama(ROME)}", "", [(GET, PARIS), (GET, ROME)]),
    "llama3_text": ("llama3", "It is {sunny}.", "It is {sunny}.", []),
    "llama3_own_json": ("llama3", '{"name": "Bob", "age": 3} is he', '{"name": "Bob", "age": 3} is he', []),
    "llama3_code": ("llama3", '<|python_tag|>get(q="x")', '<|python_tag|>get(q="x")', []),
    "llama3_type_key": ("llama3", f'{{"type": "function", "name": "{GET}", "parameters": {ROME}}}', "", [(GET, ROME)]),
    "mistral_list": ("mistral", mistral(PARIS, ROME), "", [(GET, PARIS), (GET, ROME)]),
    "mistral_named": ("mistral", f"[TOOL_CALLS]{GET}[ARGS]{PARIS}", "", [(GET, PARIS)]),
    "mistral_named_two": (
        "mistral",
        f"ok [TOOL_CALLS]{GET}[ARGS]{PARIS}[TOOL_CALLS]ping[ARGS]{{}}",
        "ok",
        [(GET, PARIS), ("ping", "{}")],
    ),
    "mistral_with_id": ("mistral", f"[TOOL_CALLS]{GET}[CALL_ID]abc[ARGS]{ROME}", "", [(GET, ROME)]),
    "mistral_unmarked_arguments": ("mistral", f"[TOOL_CALLS]{GET}{ROME}", "", [(GET, ROME)]),
    "mistral_unknown_name": ("mistral", "[TOOL_CALLS]rm[ARGS]{}", "[TOOL_CALLS]rm[ARGS]{}", []),
    "mistral_empty_list": ("mistral", "[TOOL_CALLS] [] x", "[TOOL_CALLS] [] x", []),
    "none": ("none", hermes(PARIS), hermes(PARIS), []),
}


def parsed(parser: str, parts: list[str]):
    numbers = itertools.count()
    reader = tool_parser(parser, NAMES, lambda: f"id{next(numbers)}")
    events = [reader.push(part) for part in parts] + [reader.finish()]
    pieces = [piece for _, some in events for piece in some]
    calls: list[list[str]] = []
    for piece in pieces:
        if piece.index == len(calls):
            assert piece.id == f"id{piece.index}"
            calls.append([piece.name, ""])
        else:
            assert not piece.id
            assert not piece.name
        calls[piece.index][1] += piece.arguments
    assert reader.calls == len(calls)
    return "".join(text for text, _ in events), [tuple(one) for one in calls], pieces


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=30))
def test_calls_are_the_same_for_any_split(case, cuts):
    parser, written, text, calls = CASES[case]
    borders = [0, *sorted(min(cut, len(written)) for cut in cuts), len(written)]
    parts = [written[start:end] for start, end in itertools.pairwise(borders)]
    assert parsed(parser, parts)[:2] == (text, calls)
    assert parsed(parser, list(written))[:2] == (text, calls)


@pytest.mark.parametrize("parser", ["hermes", "llama3", "mistral"])
@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                "[TOOL_CALLS]",
                "[ARGS]",
                "<|python_tag|>",
                "{",
                "}",
                "[",
                "]",
                ",",
                '"name"',
                ": ",
                '"get_weather"',
                '"arguments"',
                '"parameters"',
                "\\",
                '"',
                ";",
                "\n",
                "x",
                "1",
            ]
        ),
        max_size=14,
    )
)
def test_garbage_is_read_the_same_for_any_split_and_never_raises(parser, parts):
    written = "".join(parts)
    assert parsed(parser, parts)[:2] == parsed(parser, [written])[:2] == parsed(parser, list(written))[:2]


@pytest.mark.parametrize("case", ["hermes_one", "llama3_one", "mistral_list", "mistral_named"])
def test_arguments_are_streamed(case):
    parser, written, _, _ = CASES[case]
    pieces = parsed(parser, list(written))[2]
    assert len([one for one in pieces if one.index == 0]) > 30


def test_ids_are_openais_and_mistrals():
    assert len(tool_parser("hermes").push(hermes("{}"))[1][0].id) == len("call_") + 24
    assert len(tool_parser("mistral").push(mistral("{}"))[1][0].id) == 9


@pytest.mark.parametrize(
    ("family", "template", "setting", "parser"),
    [
        ("qwen2", "... <tool_call> ...", "auto", "hermes"),
        ("mistral", "[TOOL_CALLS]", "auto", "mistral"),
        ("llama", 'ipython {"name": function name, "parameters": ...}', "auto", "llama3"),
        ("llama", "{{ message.content }}", "auto", "none"),
        ("qwen3", "{% if tools %}", "auto", "hermes"),
        ("llama", "", "hermes", "hermes"),
        ("qwen3", "<tool_call>", "none", "none"),
    ],
)
def test_which_parser(family, template, setting, parser):
    assert tool_parser_for(family, template, setting) == parser


VOCABULARY = byte_level()
EOS = VOCABULARY.backend.token_to_id(END)
GRAMMARS = Grammars(VOCABULARY, vocabulary_size=VOCABULARY.backend.get_vocab_size(), stops={EOS})
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
                "required": ["days"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "ping", "parameters": {"type": "object", "additionalProperties": False}}},
]


@pytest.mark.parametrize("parser", ["hermes", "llama3", "mistral", "none"])
@pytest.mark.parametrize("choice", ["required", "function:ping"])
@pytest.mark.parametrize("seed", range(3))
def test_forced_calls_are_read_back_by_the_familys_parser(parser, choice, seed):
    structure = tool_structure(parser, TOOLS, choice, VOCABULARY)
    matcher, masks, ids, dice = GRAMMARS.compile(structure).matcher(), GRAMMARS.masks(1), [], random.Random(seed)
    while not (ids and ids[-1] == EOS):
        matcher.fill(masks[0])
        allowed = [one for one in range(GRAMMARS.words * 32) if masks[0][one // 32] >> (one % 32) & 1]
        ids.append(EOS if EOS in allowed and dice.random() < 0.5 else dice.choice(allowed))
        assert matcher.accept(ids[-1])
        assert len(ids) < 2000
    reader = forced_parser(parser)
    keep = mark_ids(reader, VOCABULARY.backend)
    tools = Choice(Detokenizer(Decoders(VOCABULARY), keep_ids=keep), tools=tool_parser(reader, NAMES))
    pushed = tools.push(ids[:-1], final=True)
    assert pushed.text == ""
    assert tools.finish_reason("stop") == "tool_calls"
    calls = {piece.index: piece.name for piece in pushed.tools if piece.name}
    assert set(calls.values()) <= {"ping"} if choice != "required" else set(NAMES)
    assert calls
    for index, name in calls.items():
        arguments = json.loads("".join(piece.arguments for piece in pushed.tools if piece.index == index))
        assert set(arguments) == ({"days"} if name == "get_weather" else set())


def test_nothing_is_forced_unless_asked_for():
    assert tool_structure("hermes", TOOLS, "auto", VOCABULARY) is None
    assert tool_structure("hermes", TOOLS, "none", VOCABULARY) is None


@pytest.mark.parametrize(
    ("tools", "choice"), [([], "required"), (TOOLS, "function:rm"), (TOOLS, "always"), ([{"type": "x"}], "function:x")]
)
def test_choices_that_no_tool_can_meet_are_refused(tools, choice):
    with pytest.raises(InvalidInput):
        chosen_tools(tools, choice)


REASONED = {
    "thought": ("<think>\nfirst\n\nthen\n</think>\n\nanswer ", "answer ", "first\n\nthen", False),
    "opened": ("first </think> answer", "answer", "first", True),
    "none": ("answer </think> more", "answer </think> more", "", False),
    "unfinished": ("<think>first", "", "first", False),
    "empty": ("<think>\n\n</think>\n\nanswer", "answer", "", False),
    "begun": (" <thi", " <thi", "", False),
    "again": ("<think>a</think>b <think>c</think>", "b <think>c</think>", "a", False),
}


@pytest.mark.parametrize("case", REASONED)
@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=20))
def test_thoughts_are_apart_for_any_split(case, cuts):
    written, text, thoughts, opened = REASONED[case]
    borders = [0, *sorted(min(cut, len(written)) for cut in cuts), len(written)]
    reader = Reasoning(opened=opened)
    parts = [reader.push(written[start:end]) for start, end in itertools.pairwise(borders)] + [reader.finish()]
    assert ("".join(one for one, _ in parts), "".join(one for _, one in parts)) == (text, thoughts)


def test_which_reasoning_parser():
    assert reasoning_parser_for("auto", "{{ '<think>' }}") == "think"
    assert reasoning_parser_for("auto", "{{ content }}") == "none"
    assert reasoning_parser_for("none", "<think>") == "none"
    assert opens_reasoning("<|im_start|>assistant\n<think>\n")
    assert not opens_reasoning("<think></think>")


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), max_size=60))
def test_the_chain_of_a_choice(sizes):
    written = f"<think>I need 🙂</think>\n\nLet me see.\n{hermes(PARIS)}STOP never"
    ids = VOCABULARY.encode(written)
    choice = Choice(
        Detokenizer(Decoders(VOCABULARY), ["STOP"]), reasoning=Reasoning(), tools=tool_parser("hermes", NAMES)
    )
    got, at = [], 0
    for size in [*sizes, len(ids)]:
        got.append(choice.push(ids[at : at + size]))
        at += size
    got.append(choice.push([], final=True))
    assert "".join(one.text for one in got) == "Let me see."
    assert "".join(one.reasoning for one in got) == "I need 🙂"
    assert "".join(piece.arguments for one in got for piece in one.tools) == PARIS
    assert choice.stopped == "STOP"
    assert VOCABULARY.decode(ids[: sum(one.used for one in got)]).rstrip().endswith("STOP")
    assert choice.finish_reason("stop") == "tool_calls"
    assert choice.finish_reason("length") == "length"
    assert 0 < choice.reasoning_tokens < len(ids)
