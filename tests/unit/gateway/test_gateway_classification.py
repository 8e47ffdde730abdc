from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import InvalidInput
from inference.gateway.classification import Ranking, check, rank
from inference.protocol.messages import TensorHeader

NAN = float("nan")


def ranked(values, count, *, code="f", datatype="FP32", shape=None, labels=(), has_rows=False):
    data = array(code, values).tobytes()
    tensor = TensorHeader("y", datatype, shape or [len(values)], len(data))
    return rank(memoryview(data), tensor, Ranking(count, list(labels), has_rows))


def test_the_largest_come_first_with_index_and_label() -> None:
    assert ranked([0.1, 3.0, 2.5], 2, labels=["a", "b"]) == ([2], ["3.000000:1:b", "2.500000:2"])


def test_whole_numbers_have_no_point() -> None:
    assert ranked([5, 250, 7], 3, code="B", datatype="UINT8") == ([3], ["250:1", "7:2", "5:0"])
    assert ranked([-(2**63), 2**62], 1, code="q", datatype="INT64") == ([1], [f"{2**62}:1"])


def test_equal_values_keep_their_order_and_no_number_is_last() -> None:
    assert ranked([1.0, NAN, 1.0, 2.0], 9)[1] == ["2.000000:3", "1.000000:0", "1.000000:2", "nan:1"]


def test_each_row_of_a_batch_is_ranked_by_itself() -> None:
    shape, texts = ranked([1, 2, 3, 9, 8, 7], 2, shape=[2, 3], labels=["a", "b", "c"], has_rows=True)
    assert shape == [2, 2]
    assert texts == ["3.000000:2:c", "2.000000:1:b", "9.000000:0:a", "8.000000:1:b"]


def test_an_empty_output_has_no_classes() -> None:
    assert ranked([], 3, shape=[0, 4], has_rows=True) == ([0, 0], [])


@pytest.mark.parametrize("count", [-1, True, "1", 1.0, 2**40])
def test_a_bad_count_is_refused(count) -> None:
    with pytest.raises(InvalidInput, match="classification"):
        check(count, "FP32", "y")


@pytest.mark.parametrize("datatype", ["BOOL", "BYTES", "FP16", "BF16"])
def test_what_is_no_number_cannot_be_ranked(datatype) -> None:
    with pytest.raises(InvalidInput, match=f"unsupported type '{datatype}'"):
        check(1, datatype, "y")
    assert check(0, datatype, "y") == 0


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=30), st.integers(1, 40))
def test_it_is_a_sorted_prefix_without_doubles(values, count) -> None:
    shape, texts = ranked(values, count, code="i", datatype="INT32")
    found = [tuple(map(int, text.split(":"))) for text in texts]
    assert shape == [len(found)] == [min(count, len(values))]
    assert found == sorted(((value, index) for index, value in enumerate(values)), key=lambda p: (-p[0], p[1]))[:count]
