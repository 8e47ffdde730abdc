from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from inference.gateway.router import choose_variant, less_busy, newest
from inference.protocol.oip import Signature
from inference.protocol.routes import ReplicaRoute, VariantRoute

NONE = Signature(inputs=[], outputs=[])


def variants(*weights):
    return [VariantRoute(number, f"arm{number}", weight, NONE) for number, weight in enumerate(weights, 1)]


def shares(weights, callers=4000, salt="s"):
    found = [0] * len(weights)
    for caller in range(callers):
        found[choose_variant(variants(*weights), salt, f"c{caller}").version - 1] += 1
    return [count / callers for count in found]


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=4).filter(any), st.text(max_size=8))
def test_shares_follow_the_weights(weights, salt):
    for weight, share in zip(weights, shares(weights, 1500, salt), strict=True):
        expected = weight / sum(weights)
        assert abs(share - expected) < 0.065
        if not weight:
            assert share == 0


def test_ninety_ten_is_ninety_ten():
    assert abs(shares([9000, 1000], 20_000)[1] - 0.1) < 0.01


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.text(max_size=12))
def test_nobody_leaves_a_variant_whose_weight_rises(one, two, caller):
    low, high = sorted((one, two))
    before = choose_variant(variants(10_000 - low, low), "salt", caller)
    after = choose_variant(variants(10_000 - high, high), "salt", caller)
    if before.version == 2:
        assert after.version == 2


@given(st.lists(st.integers(1, 3000), min_size=3, max_size=4), st.integers(1, 7000), st.text(max_size=12))
def test_a_third_variants_callers_only_move_to_the_one_that_rose(weights, more, caller):
    before = choose_variant(variants(*weights), "salt", caller)
    after = choose_variant(variants(weights[0] + more, *weights[1:]), "salt", caller)
    assert after.version in {before.version, 1}


def test_the_same_caller_stays_where_it_is():
    table = variants(5000, 5000)
    assert len({choose_variant(table, "s", "me").version for _ in range(50)}) == 1


def test_no_weight_is_no_variant():
    assert choose_variant(variants(0, 0), "s", "me") is None
    assert choose_variant([], "s", "me") is None


def test_only_the_newest_generation_of_a_replica_counts():
    old, new, other = ReplicaRoute("a", 1, "unix:/1"), ReplicaRoute("a", 2, "unix:/2"), ReplicaRoute("b", 1, "unix:/3")
    assert newest([new, old, other]) == [new, other]


@dataclass
class Load:
    in_flight: int


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
)
def test_the_busiest_alone_is_never_chosen(loads, first, second):
    candidates = [Load(load) for load in loads]
    chosen = less_busy(candidates, first, second)
    assert any(chosen is candidate for candidate in candidates)
    if len(loads) > 1 and loads.count(max(loads)) == 1:
        assert chosen.in_flight < max(loads)
