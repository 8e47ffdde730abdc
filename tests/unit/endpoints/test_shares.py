"""shares: the arithmetic of a split."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from endpoints.shares import make_room


def test_the_others_keep_their_proportions() -> None:
    assert make_room({1: 6000, 2: 4000}, 3, 1000) == {1: 5400, 2: 3600, 3: 1000}


def test_a_version_alone_gets_everything() -> None:
    assert make_room({1: 10_000}, 1, 300) == {1: 10_000}
    assert make_room({1: 0}, 2, 300) == {1: 0, 2: 10_000}


def test_remainders_go_to_the_largest_fraction_then_to_the_lowest_number() -> None:
    assert make_room({1: 3334, 2: 3333, 3: 3333}, 4, 1) == {1: 3333, 2: 3333, 3: 3333, 4: 1}
    assert make_room({1: 5000, 2: 5000}, 3, 1) == {1: 5000, 2: 4999, 3: 1}


@given(
    st.dictionaries(st.integers(1, 50), st.integers(0, 10_000), max_size=8), st.integers(1, 50), st.integers(0, 10_000)
)
def test_shares_sum_to_all(shares: dict[int, int], number: int, wanted: int) -> None:
    made = make_room(shares, number, wanted)
    assert sum(made.values()) == 10_000
    assert all(share >= 0 for share in made.values())
    assert set(made) == {*shares, number}
