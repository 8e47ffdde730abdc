"""Buckets and padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.batching.padding import bucket_for, pad, split, stack


@given(st.lists(st.integers(1, 512), min_size=1, unique=True), st.integers(1, 512))
def test_the_smallest_bucket_that_holds_the_rows(buckets, rows):
    if rows > max(buckets):
        with pytest.raises(ValueError, match="do not fit"):
            bucket_for(rows, buckets)
        return
    chosen = bucket_for(rows, buckets)
    assert chosen in buckets
    assert chosen >= rows
    assert not any(rows <= other < chosen for other in buckets)


def test_without_buckets_any_size_runs_as_it_is():
    assert bucket_for(7, []) == 7


def test_padding_repeats_the_last_row_of_bytes_too():
    padded = pad({"x": np.array([[1], [2]]), "t": np.array([b"a", b"b"], dtype=object)}, 4)
    assert padded["x"].tolist() == [[1], [2], [2], [2]]
    assert padded["t"].tolist() == [b"a", b"b", b"b", b"b"]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 4))
def test_stack_pad_split_gives_everybody_their_own_rows_back(rows, extra):
    parts = [{"x": np.full((count, 2), index)} for index, count in enumerate(rows)]
    batch = pad(stack(parts), sum(rows) + extra)
    assert len(batch["x"]) == sum(rows) + extra
    for part, back in zip(parts, split(batch, rows), strict=True):
        np.testing.assert_array_equal(part["x"], back["x"])
