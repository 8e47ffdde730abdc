"""Priorities and queue policies, as Triton means them."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.batching import policies
from inference.errors import InvalidInput
from inference.protocol.messages import BACKGROUND
from inference.protocol.settings import QueuePolicy, RuntimeSettings

microseconds = st.integers(0, 10_000_000)


def test_without_priorities_what_a_request_names_is_ignored():
    plain = policies.of(RuntimeSettings())
    assert plain.are_plain
    assert plain.level(7) == 0


def test_a_request_that_names_no_level_takes_the_default():
    three = policies.of(RuntimeSettings(priority_levels=3, default_priority_level=2))
    assert [three.level(n) for n in (0, 1, 2, 3)] == [2, 1, 2, 3]


def test_the_background_is_behind_all_levels_and_has_the_policy_of_the_last():
    last = QueuePolicy(max_queue_size=2)
    three = policies.of(RuntimeSettings(priority_levels=3, priority_policies={"3": last}))
    assert three.level(BACKGROUND) == three.background == 4
    assert (three.is_full(4, 1), three.is_full(4, 2)) == (False, True)
    assert policies.of(RuntimeSettings()).level(BACKGROUND) == 1


@pytest.mark.parametrize("wrong", [-1, 4, 2**31])
def test_a_level_that_there_is_not_is_refused_with_the_levels_that_there_are(wrong):
    with pytest.raises(InvalidInput, match=r"1 \(highest\) to 3"):
        policies.of(RuntimeSettings(priority_levels=3)).level(wrong)


def test_the_default_is_the_lowest_level_when_none_is_named():
    assert policies.of(RuntimeSettings(priority_levels=3)).level(0) == 3


@given(default=microseconds, asked=microseconds, allowed=st.booleans())
def test_a_requests_own_timeout_only_lowers_and_only_where_allowed(default, asked, allowed):
    policy = QueuePolicy(default_timeout_us=default, allow_timeout_override=allowed)
    found = policies.of(RuntimeSettings(queue_policy=policy)).may_wait_s(0, asked)
    if not default:
        assert found == inf
    elif allowed and 0 < asked < default:
        assert found == pytest.approx(asked / 1e6)
    else:
        assert found == pytest.approx(default / 1e6)


def test_each_level_has_its_own_policy_or_the_common_one():
    own = QueuePolicy(max_queue_size=1, timeout_action="delay")
    two = policies.of(RuntimeSettings(priority_levels=2, priority_policies={"1": own}))
    assert two.is_full(1, 1)
    assert not two.is_full(2, 1000)
    assert (two.delays(1), two.delays(2)) == (True, False)
