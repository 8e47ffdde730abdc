"""Whatever the split: what is sent, put together, is the tokenizer's own decoding, and never holds half a character."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.errors import InvalidInput
from inference.generation.detokenizer import BROKEN, Decoders, Detokenizer, StopSearch
from tests.support.vocabularies import END, byte_level, sentencepiece_like

VOCABULARIES = {"byte_level": byte_level(), "sentencepiece": sentencepiece_like()}
DECODERS = {name: Decoders(one) for name, one in VOCABULARIES.items()}
TEXTS = st.text(
    st.sampled_from('abe THE\n  {}":,é́ü日本語中文🙂👍🏽👨‍👩‍👧\u200d\u0301अ') | st.characters(exclude_categories=["Cs"]),
    max_size=40,
).map(lambda text: text.replace(BROKEN, ""))
each = pytest.mark.parametrize("name", sorted(VOCABULARIES))


def streamed(detokenizer: Detokenizer, ids: list[int], sizes: list[int]) -> list[str]:
    parts, at = [], 0
    for size in [*sizes, len(ids)]:
        parts.append(detokenizer.push(ids[at : at + size]))
        at += size
    return [*parts, detokenizer.finish()]


def test_which_vocabularies_are_decoded_byte_by_byte():
    assert DECODERS["byte_level"].byte_level
    assert not DECODERS["sentencepiece"].byte_level


@each
@settings(max_examples=100, deadline=None)
@given(text=TEXTS, sizes=st.lists(st.integers(0, 4), max_size=60))
def test_parts_put_together_are_the_whole(name, text, sizes):
    vocabulary = VOCABULARIES[name]
    ids = vocabulary.encode(text)
    parts = streamed(Detokenizer(DECODERS[name]), ids, sizes)
    assert "".join(parts) == vocabulary.decode(ids)
    assert not any(BROKEN in part for part in parts)


@each
@settings(max_examples=100, deadline=None)
@given(prompt=TEXTS.filter(bool), text=TEXTS)
def test_with_the_prompt_it_is_what_continues_it(name, prompt, text):
    vocabulary = VOCABULARIES[name]
    before, ids = vocabulary.encode("a" + prompt), vocabulary.encode(text)
    parts = streamed(Detokenizer(DECODERS[name], prompt_ids=before), ids, [1] * len(ids))
    assert vocabulary.decode(before) + "".join(parts) == vocabulary.decode([*before, *ids])


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, VOCABULARIES["byte_level"].backend.get_vocab_size() - 1), max_size=40))
def test_any_bytes_at_all_are_decoded_as_the_tokenizer_does(ids):
    """Only an unfinished character at the very end is left out."""
    whole = VOCABULARIES["byte_level"].decode(ids)
    got = "".join(streamed(Detokenizer(DECODERS["byte_level"]), ids, [1] * len(ids)))
    assert got == whole or (whole.startswith(got) and whole[len(got) :] == BROKEN)


@each
def test_a_character_waits_for_its_last_byte(name):
    vocabulary = VOCABULARIES[name]
    ids = vocabulary.encode("🦊")
    detokenizer = Detokenizer(DECODERS[name], prompt_ids=vocabulary.encode("a"))
    parts = [detokenizer.push([one]) for one in ids]
    assert parts[-1].strip() == "🦊"
    assert not "".join(parts[:-1]).strip()
    assert len(parts) > 2


@each
def test_an_unfinished_character_is_left_out(name):
    vocabulary = VOCABULARIES[name]
    ids = vocabulary.encode("a🦊")[:-1]
    assert "".join(streamed(Detokenizer(DECODERS[name]), ids, [1] * len(ids))) == "a"


@each
def test_special_tokens_are_skipped_unless_wanted(name):
    vocabulary = VOCABULARIES[name]
    end = vocabulary.backend.token_to_id(END)
    ids = [*vocabulary.encode("a"), end, *vocabulary.encode("b")]
    for options, skips in (({}, True), ({"skip_special_tokens": False}, False), ({"keep_ids": {end}}, False)):
        got = "".join(streamed(Detokenizer(DECODERS[name], **options), ids, [1] * 3))
        assert got == vocabulary.decode(ids, skip_special_tokens=skips)
        assert (END in got) is not skips


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character: the stop that is complete first, the longest of those."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


SHORT = st.text("abé🙂", max_size=12)


@settings(max_examples=100, deadline=None)
@given(
    text=SHORT,
    stops=st.lists(st.text("abé🙂", min_size=1, max_size=4), min_size=1, max_size=4),
    sizes=st.lists(st.integers(0, 3), max_size=20),
    include=st.booleans(),
)
def test_stop_strings_hold_across_any_border(text, stops, sizes, include):
    vocabulary = VOCABULARIES["byte_level"]
    ids = vocabulary.encode(text)
    detokenizer = Detokenizer(DECODERS["byte_level"], stops, include_stop=include)
    got = "".join(streamed(detokenizer, ids, sizes))
    expected, stopped = reference(text, stops)
    assert detokenizer.stopped == stopped
    assert got == expected + (stopped or "" if include else "")


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.text("ab", max_size=3), max_size=8), stops=st.lists(st.text("ab", min_size=1, max_size=4)))
def test_what_was_sent_is_never_part_of_a_stop_string(parts, stops):
    search = StopSearch(stops)
    sent = ""
    for at, part in enumerate(parts):
        sent += search.push(part)
        assert reference("".join(parts), stops)[0].startswith(sent), at
    assert sent + search.finish() == reference("".join(parts), stops)[0]


def test_used_tells_which_token_completed_the_stop():
    vocabulary = VOCABULARIES["byte_level"]
    ids = vocabulary.encode("x###y")
    detokenizer = Detokenizer(DECODERS["byte_level"], ["###"])
    assert detokenizer.push(ids) == "x"
    assert vocabulary.decode(ids[: detokenizer.used]).endswith("###")
    assert detokenizer.push(ids) == ""
    assert detokenizer.used == 0


def test_no_stop_is_looked_for_before_min_tokens():
    vocabulary = VOCABULARIES["byte_level"]
    ids = vocabulary.encode("zqzqzq")
    assert len(ids) == 6
    detokenizer = Detokenizer(DECODERS["byte_level"], ["q"], min_tokens=3)
    assert detokenizer.push(ids) == "zqz"
    assert detokenizer.used == 4


@pytest.mark.parametrize(("stops", "words"), [([""], "1 to 1024"), (["a" * 1025], "1 to 1024"), (["a"] * 65, "64")])
def test_stop_strings_out_of_bounds_are_refused(stops, words):
    with pytest.raises(InvalidInput, match=words):
        StopSearch(stops)


@each
def test_its_cost_does_not_grow_with_the_text(name):
    vocabulary = VOCABULARIES[name]
    ids = vocabulary.encode("The quick brown fox ")
    detokenizer = Detokenizer(DECODERS[name], ["never###"])
    times = []
    for _ in range(2):
        begins = time.perf_counter()
        for _ in range(500):
            detokenizer.push(ids)
        times.append(time.perf_counter() - begins)
    assert times[1] < 3 * times[0]
