"""The health sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.health import Facts, Health, judge

ORDER = ["good", "idle", "warn", "bad"]


@pytest.mark.parametrize(
    ("facts", "tone", "words"),
    [
        (Facts(hosts=1), "idle", "Nothing is deployed yet."),
        (Facts(), "bad", "No host has joined"),
        (Facts(endpoints=1, hosts=1), "good", "The one endpoint answers with every version ready."),
        (Facts(endpoints=3, hosts=1), "good", "All 3 endpoints answer"),
        (Facts(endpoints=1, hosts=1, dark=["digits"]), "bad", "Endpoint “digits” has no ready replica"),
        (Facts(endpoints=5, hosts=1, dark=["a", "b", "c", "d"]), "bad", "Endpoints “a”, “b”, “c” and 1 more have no"),
        (Facts(endpoints=1, hosts=1, error_share=0.2), "bad", "20% of requests fail."),
        (Facts(endpoints=1, hosts=1, error_share=0.01), "good", "The one endpoint"),
        (Facts(endpoints=1, hosts=2, lost_hosts=["b"]), "warn", "Host “b” does not answer."),
        (Facts(endpoints=1, hosts=2, lost_hosts=["a", "b"]), "bad", "No host answers."),
        (Facts(hosts=1, awaiting=1), "warn", "1 version awaits approval."),
        (Facts(hosts=1, awaiting=2), "warn", "2 versions await approval."),
    ],
)
def test_the_sentence_names_the_worst(facts: Facts, tone: str, words: str) -> None:
    found = judge(facts)
    assert found.tone == tone
    assert found.sentence.startswith(words)


names = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), unique=True)


@given(
    endpoints=st.integers(0, 9),
    dark=names,
    lost=names,
    more_hosts=st.integers(0, 3),
    awaiting=st.integers(0, 3),
    error=st.none() | st.floats(0, 1),
)
def test_it_is_always_one_sentence_and_trouble_never_improves_it(
    endpoints: int, dark: list[str], lost: list[str], more_hosts: int, awaiting: int, error: float | None
) -> None:
    base = Facts(
        endpoints=endpoints, hosts=len(lost) + more_hosts, lost_hosts=lost, awaiting=awaiting, error_share=error
    )
    worse = Facts(
        endpoints=endpoints, hosts=base.hosts, lost_hosts=lost, awaiting=awaiting, error_share=error, dark=[*dark, "z"]
    )
    found: Health = judge(base)
    assert found.sentence.endswith(".")
    assert found.sentence[0].isupper() or found.sentence[0].isdigit()
    assert ORDER.index(judge(worse).tone) >= ORDER.index(found.tone)
