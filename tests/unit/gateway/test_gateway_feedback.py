"""Ids of answers: what they say comes back, and nothing else does."""

import re
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from inference.gateway.feedback import MAX_KEPT, Seen
from inference.gateway.feedback_ids import FORM, FeedbackIds, Told, read, sign

SECRET = b"hush"
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}", fullmatch=True)
arms = st.sampled_from(["primary", "canary", "shadow", "pinned", "playground", "b"])


def made(name, version, arm, *, secret=SECRET, steering=True, now=1_700_000_000):
    route = SimpleNamespace(steering=steering or None)
    table = SimpleNamespace(now=SimpleNamespace(keys=SimpleNamespace(token_secret=secret)))
    ids = FeedbackIds(table, lambda: now)
    flights = [
        SimpleNamespace(
            endpoint=SimpleNamespace(route=route), variant=SimpleNamespace(key=(name, version, arm)), feedback=""
        )
        for _ in range(2)
    ]
    return ids, flights


@given(names, st.integers(1, 999_999_999), arms)
def test_an_id_says_who_answered_and_when(name, version, arm):
    ids, (one, other) = made(name, version, arm)
    found = ids.of(one)
    assert ids.of(one) == found != ids.of(other)
    assert read(SECRET, found) == Told(name, version, arm, 1_700_000_000, found.rpartition(".")[2])
    assert re.fullmatch(re.escape(name) + FORM, found)
    assert len(found) <= len(name) + 64


@given(names, st.integers(0, 60), st.sampled_from("0aZ.-_"))
def test_a_changed_id_says_nothing(name, at, letter):
    ids, (one, _) = made(name, 2, "canary")
    found = ids.of(one)
    at %= len(found)
    changed = found[:at] + letter + found[at + 1 :]
    assert changed == found or read(SECRET, changed) is None
    assert read(b"another", found) is None
    assert read(b"", found) is None
    assert read(SECRET, found[:at]) is None


def test_a_mark_is_of_this_use_and_of_this_secret():
    long, longer = b"s" * 100, b"s" * 101
    assert len({sign(SECRET, "a"), sign(SECRET, "b"), sign(b"other", "a"), sign(long, "a"), sign(longer, "a")}) == 5


def test_without_a_rollout_or_a_secret_there_is_no_id():
    for more in ({"steering": False}, {"secret": b""}):
        ids, (one, _) = made("e", 1, "primary", **more)
        assert ids.of(one) == ""


def test_what_was_seen_is_bounded_and_the_oldest_goes_first():
    seen = Seen()
    assert all(seen.add(str(number)) for number in range(MAX_KEPT + 1))
    assert not seen.add(str(MAX_KEPT))
    assert seen.add("0")
