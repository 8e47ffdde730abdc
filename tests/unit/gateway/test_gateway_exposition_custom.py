from __future__ import annotations

import math

import pytest

from inference.gateway.exposition_custom import CustomMetrics
from inference.gateway.replica_sums import Sums
from inference.protocol.custom_metrics import MAX_SERIES, Family, Series
from inference.protocol.statistics import ModelStatistics
from tests.support.exposition import scraped, value


def counter(number: float, **labels: str) -> Family:
    return Family("counter", "d", {tuple(sorted(labels.items())): Series(number)})


def told(life: int, **custom: Family) -> ModelStatistics:
    return ModelStatistics(life=life, custom=custom)


def histogram(*counts: int, edges: tuple[float, ...] = (1.0, 2.0)) -> Family:
    return Family("histogram", "d", {(): Series(float(sum(counts)), edges, list(counts))})


def test_restarts_and_replicas_add_up_and_gauges_of_the_dead_are_gone() -> None:
    sums = Sums()
    gauge = Family("gauge", "d", {(): Series(4.0)})
    sums.tell("a@1", told(1, c=counter(5, x="y"), g=gauge, h=histogram(1, 2, 3)))
    sums.tell("b@1", told(2, c=counter(2, x="y"), g=gauge, h=histogram(1, 0, 0)))
    assert sums.total().custom["g"].series[()].value == 8
    sums.tell("a@1", told(3, c=counter(1, x="y"), h=histogram(1, 0, 0)))
    total = sums.total().custom
    assert total["c"].series[("x", "y"),].value == 8
    assert total["h"].series[()].counts == [3, 2, 3]
    assert total["g"].series[()].value == 4
    sums.rest("b@1")
    assert "g" not in sums.total().custom
    assert sums.total().custom["c"].series[("x", "y"),].value == 8


def test_what_does_not_fit_together_is_left_out_and_the_living_count() -> None:
    sums = Sums()
    sums.tell("a@1", told(1, h=histogram(1, 2, 3), c=counter(5)))
    sums.tell("a@1", told(2, h=histogram(1, 1, edges=(7.0,)), c=Family("gauge", "d", {(): Series(-1.0)})))
    total = sums.total().custom
    assert total["h"].series[()].counts == [1, 1]
    assert (total["c"].kind, total["c"].series[()].value) == ("gauge", -1.0)


def test_sums_of_many_lives_stay_bounded() -> None:
    sums = Sums()
    for life in range(5):
        wide = Family("counter", "d", {(("n", f"{life}-{number}"),): Series(1.0) for number in range(600)})
        sums.tell("a@1", told(life + 1, c=wide))
    assert sums.total().custom["c"].size == MAX_SERIES
    assert sums.past.custom["c"].size == MAX_SERIES


UNSOUND = {
    "a name of ours": {"serinus_requests": counter(1)},
    "a name that is none": {'x"} 1\nevil': counter(1)},
    "a text of two lines": {"x": Family("counter", "d\nevil 1", {})},
    "a label that is none": {"x": Family("counter", "d", {(('a"', "b"),): Series(1.0)})},
    "a label twice": {"x": Family("counter", "d", {(("a", "b"), ("a", "c")): Series(1.0)})},
    "labels in disorder": {"x": Family("counter", "d", {(("b", "b"), ("a", "c")): Series(1.0)})},
    "a counter below zero": {"x": counter(-1)},
    "a counter that is no number": {"x": counter(math.nan)},
    "a counter with buckets": {"x": Family("counter", "d", {(): Series(1.0, (1.0,), [1, 2])})},
    "a histogram without": {"x": Family("histogram", "d", {(): Series(1.0)})},
    "counts that are too few": {"x": histogram(1, 2)},
    "counts below zero": {"x": histogram(1, -2, 3)},
    "counts without end": {"x": histogram(1, 2**60, 3)},
    "edges that fall": {"x": histogram(1, 2, 3, edges=(2.0, 1.0))},
    "too many": {"x": Family("counter", "d", {(("n", str(number)),): Series(1.0) for number in range(1001)})},
    "too many families": {f"x{number}": counter(1) for number in range(65)},
}


@pytest.mark.parametrize("what", sorted(UNSOUND))
def test_nonsense_is_not_taken(what: str) -> None:
    sums = Sums()
    sums.tell("a@1", ModelStatistics(custom=UNSOUND[what]))
    assert not sums.now


def test_a_name_has_one_kind_until_nobody_tells_it_any_more() -> None:
    page = CustomMetrics()
    later = told(1, x=counter(1), y=histogram(1, 0, 0))
    text = "\n".join(page.lines({("b", "1"): later}))
    assert value(scraped(text + "\n"), "y_count", endpoint="b") == 1
    gauge = told(1, x=Family("gauge", "d", {(): Series(9.0)}), y_sum=counter(4), z=counter(2))
    lines = list(page.lines({("a", "1"): gauge, ("b", "1"): later}))
    assert 'x{endpoint="b",version="1"} 1' in lines
    assert 'z{endpoint="a",version="1"} 2' in lines
    assert not [line for line in lines if line.startswith(('x{endpoint="a"', 'y_sum{endpoint="a"'))]
    lines = list(page.lines({("a", "1"): gauge}))
    assert 'x{endpoint="a",version="1"} 9' in lines
    assert 'y_sum{endpoint="a",version="1"} 4' in lines


def test_gauges_may_be_anything_and_labels_of_ours_are_kept_under_another_name() -> None:
    labels = (("endpoint", "mine"), ("version", "\\"))
    found = told(
        1, g=Family("gauge", "back\\slash", {labels: Series(math.inf)}), f=counter(0.1 + 0.2), b=counter(1e300)
    )
    lines = list(CustomMetrics().lines({("e/s", "2"): found}))
    assert 'g{endpoint="e/s",version="2",exported_endpoint="mine",exported_version="\\\\"} +Inf' in lines
    assert "# HELP g back\\\\slash" in lines
    assert 'f{endpoint="e/s",version="2"} 0.30000000000000004' in lines
    assert 'b{endpoint="e/s",version="2"} 1e+300' in lines
