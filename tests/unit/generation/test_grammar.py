"""Whatever tokens a mask leaves, the text is what was asked for; and no structure takes the engine down."""

from __future__ import annotations

import json
import random
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import InvalidInput, Unsupported
from inference.generation.grammar import Grammars, MaskWanted, source_of
from inference.protocol.generation import Structure
from tests.support.vocabularies import END, byte_level, sentencepiece_like

VOCABULARY = byte_level()
EOS = VOCABULARY.backend.token_to_id(END)
SIZE = VOCABULARY.backend.get_vocab_size() + 37  # models pad their logits
GRAMMARS = Grammars(VOCABULARY, vocabulary_size=SIZE, stops={EOS}, threads=2)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def allowed(row) -> list[int]:
    return np.unpackbits(row.view(np.uint8), bitorder="little")[:SIZE].nonzero()[0].tolist()


def written(matcher, seed: int, most: int = 400) -> tuple[str, bool]:
    """A text of a model that chooses at random among what is allowed."""
    dice, ids, masks = random.Random(seed), [], GRAMMARS.masks(1)
    for _ in range(most):
        matcher.fill(masks[0])
        token = dice.choice(allowed(masks[0]))
        assert matcher.accept(token)
        if token == EOS:
            return VOCABULARY.decode(ids), True
        ids.append(token)
    return VOCABULARY.decode(ids), False


@pytest.mark.parametrize("seed", range(6))
def test_json_schema(seed):
    text, ended = written(GRAMMARS.compile(Structure(json_schema=json.dumps(SCHEMA))).matcher(), seed)
    assert ended
    read = json.loads(text)
    assert set(read) == {"name", "age"}
    assert 0 <= read["age"] <= 9


@pytest.mark.parametrize("seed", range(6))
def test_regex(seed):
    pattern = r"[0-9]{3}-(cat|dog)s?"
    text, ended = written(GRAMMARS.compile(Structure(regex=pattern)).matcher(), seed)
    assert ended
    assert re.fullmatch(pattern, text)


def test_json_object_begins_with_a_brace_and_may_not_write_spaces_for_ever():
    matcher = GRAMMARS.compile(Structure(json_object=True)).matcher()
    masks = GRAMMARS.masks(1)
    matcher.fill(masks[0])
    assert {VOCABULARY.decode([one])[0] for one in allowed(masks[0])} == {"{"}
    assert matcher.accept(VOCABULARY.backend.token_to_id("{"))
    line = VOCABULARY.encode("\n")[0]
    assert matcher.valid_drafts([line] * 100) == 40


@settings(max_examples=50, deadline=None)
@given(
    choice=st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6), min_size=1, max_size=4
    ),
    seed=st.integers(0, 9),
)
def test_choice_is_taken_literally(choice, seed):
    text, ended = written(GRAMMARS.compile(Structure(choice=choice)).matcher(), seed)
    assert ended
    assert text in choice


def test_lark_grammar():
    text, ended = written(GRAMMARS.compile(Structure(grammar='start: "a" ("b" | "c"){2} END\nEND: "!"')).matcher(), 1)
    assert ended
    assert re.fullmatch("a[bc]{2}!", text)


def test_rollback_and_drafts():
    matcher = GRAMMARS.compile(Structure(regex="ab?c")).matcher()
    a, b, c = (VOCABULARY.backend.token_to_id(one) for one in "abc")
    assert matcher.valid_drafts([a, c, a]) == 2
    masks = GRAMMARS.masks(4)
    GRAMMARS.fill([MaskWanted(matcher, 0, (a, c))], masks)
    assert [allowed(row) for row in masks[:3]] == [[a], [b, c], [EOS]]
    assert allowed(masks[3]) == list(range(SIZE))
    assert matcher.accept(a)
    assert matcher.accept(c)
    assert matcher.is_done
    assert matcher.is_accepting
    matcher.rollback(1)
    assert not matcher.is_done
    other = matcher.copy()
    assert matcher.accept(b)
    assert matcher.accept(c)
    other.fill(masks[0])
    assert allowed(masks[0]) == [b, c]
    with pytest.raises(ValueError, match="take back"):
        other.rollback(5)


def test_a_token_that_is_not_allowed_fails_this_matcher_only():
    grammar = GRAMMARS.compile(Structure(regex="ab"))
    matcher, other = grammar.matcher(), grammar.matcher()
    assert not matcher.accept(VOCABULARY.backend.token_to_id("z"))
    assert "satisfy the grammar" in matcher.failed
    masks = GRAMMARS.masks(2)
    GRAMMARS.fill([MaskWanted(matcher, 0), MaskWanted(other, 1)], masks)
    assert allowed(masks[0]) == [EOS]
    assert not other.failed
    assert VOCABULARY.backend.token_to_id("a") in allowed(masks[1])


def test_many_at_once_are_filled_as_one_by_one():
    matchers = [GRAMMARS.compile(Structure(regex=f"[a-{last}]+")).matcher() for last in "bcdefghij"]
    masks, alone = GRAMMARS.masks(len(matchers)), GRAMMARS.masks(len(matchers))
    GRAMMARS.fill([MaskWanted(one, row) for row, one in enumerate(matchers)], masks)
    for row, one in enumerate(matchers):
        one.copy().fill(alone[row])
    assert (masks == alone).all()


def test_ids_beyond_the_vocabulary_are_never_allowed():
    masks = GRAMMARS.masks(1)
    GRAMMARS.compile(Structure(regex="(.|\n)*")).matcher().fill(masks[0])
    assert max(allowed(masks[0])) < VOCABULARY.backend.get_vocab_size()


@pytest.mark.parametrize(
    ("structure", "words"),
    [
        (Structure(), "exactly one"),
        (Structure(regex="a", choice=["b"]), "exactly one"),
        (Structure(regex="(a"), "unclosed group"),
        (Structure(regex="(?=a)b"), "look-ahead"),
        (Structure(json_schema="{"), "not JSON"),
        (Structure(json_schema="3"), "not an object"),
        (Structure(json_schema="[" * 20000), "not JSON"),
        (Structure(json_schema='{"type": "objec"}'), "objec"),
        (Structure(json_schema='{"$ref": "http://127.0.0.1/x"}'), "cannot be used"),
        (Structure(json_schema='{"$ref": "file:///etc/passwd"}'), "cannot be used"),
        (Structure(grammar="start: nothing"), "nothing"),
        (Structure(choice=["a", ""]), "none of them empty"),
        (Structure(choice=["a"] * 1025), "1024"),
        (Structure(regex="a" * 70000), "65536"),
    ],
    ids=range(14),
)
def test_bad_structures_are_the_callers_fault(structure, words):
    with pytest.raises(InvalidInput, match=words):
        GRAMMARS.compile(structure)


@pytest.mark.parametrize(
    "structure",
    [
        Structure(regex="((a{0,300}){0,300}){0,300}b"),
        Structure(regex="(.*a.{400}|.*b.{400}|.*c.{500})x"),
        Structure(regex="(x+x+)+y"),
        Structure(json_schema=json.dumps({"type": "array", "minItems": 10**6, "items": {"type": "string"}})),
        Structure(
            json_schema=json.dumps({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}})
        ),
        Structure(json_schema='{"$defs": {"x": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"}'),
        Structure(grammar="start: x x x x x x x x\nx: y y y y y y y y\ny: z z z z z z z z\nz: /(.*a){20}/ | z z"),
    ],
    ids=range(7),
)
def test_what_explodes_is_refused_or_cheap(structure):
    begins = time.monotonic()
    try:
        matcher = GRAMMARS.compile(structure).matcher()
    except InvalidInput:
        pass
    else:
        written(matcher, 3, most=30)
    assert time.monotonic() - begins < 10


def test_the_same_structure_is_compiled_once():
    assert GRAMMARS.compile(Structure(regex="once+")) is GRAMMARS.compile(Structure(regex="once+"))


def test_sentencepiece_vocabularies_can_be_constrained():
    vocabulary = sentencepiece_like()
    end = vocabulary.backend.token_to_id(END)
    size = vocabulary.backend.get_vocab_size()
    grammars = Grammars(vocabulary, vocabulary_size=size, stops={end})
    matcher, masks, ids = grammars.compile(Structure(choice=["The fox", "日本"])).matcher(), grammars.masks(1), []
    while not matcher.is_done:
        matcher.fill(masks[0])
        ids.append(allowed(masks[0])[-1])
        assert matcher.accept(ids[-1])
    assert vocabulary.decode([one for one in ids if one != end]) in {"The fox", "日本"}


def test_a_model_without_an_end_has_no_structured_output():
    with pytest.raises(Unsupported, match="end-of-sequence"):
        Grammars(VOCABULARY, vocabulary_size=SIZE, stops=())


def test_source_of_a_regex_is_what_llguidance_reads():
    assert "lark_grammar" in json.loads(source_of(Structure(regex="a/b")))["grammars"][0]
