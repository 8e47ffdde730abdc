"""Custom metrics as Triton's Python backend documents them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from inference.models.triton_python import metrics
from inference.models.triton_python.backend_utils import MetricFamily, TritonModelException
from inference.protocol.custom_metrics import MAX_FAMILIES, MAX_SERIES, are_sound

COUNTER, GAUGE, HISTOGRAM = MetricFamily.COUNTER, MetricFamily.GAUGE, MetricFamily.HISTOGRAM


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(metrics, "REGISTER", metrics.Register())
    yield
    assert are_sound(metrics.REGISTER.told())


def told(name: str) -> Any:
    return metrics.REGISTER.told()[name]


def test_a_counter_rises_only() -> None:
    metric = MetricFamily("c", "d", COUNTER).Metric(labels={"b": "2", "a": "1"})
    metric.increment(2023.0)
    for call in (lambda: metric.increment(-1), lambda: metric.set(1), lambda: metric.observe(1)):
        with pytest.raises(TritonModelException):
            call()
    for number in (float("nan"), float("inf")):
        with pytest.raises(TritonModelException, match="finite"):
            metric.increment(number)
    assert metric.value() == 2023.0
    assert list(told("c").series) == [(("a", "1"), ("b", "2"))]


def test_a_gauge_goes_both_ways() -> None:
    metric = MetricFamily(name="g", description="d", kind=GAUGE).Metric()
    metric.increment(5)
    metric.increment(-7.5)
    assert metric.value() == -2.5
    metric.set(999.9)
    assert told("g").series[()].value == 999.9
    with pytest.raises(TritonModelException, match="a gauge does not support observe"):
        metric.observe(1)
    with pytest.raises(TritonModelException, match="a gauge has no buckets"):
        MetricFamily("g", "d", GAUGE).Metric(buckets=[1])


def test_a_histogram_counts_up_to_its_edges() -> None:
    metric = MetricFamily("h", "d", HISTOGRAM).Metric(labels={}, buckets=[0.1, 1.0, 2.5, 5.0, 10.0])
    for number in (0.05, 1.0, 6.0, 11.0):
        metric.observe(number)
    series = told("h").series[()]
    assert (series.counts, series.value) == ([1, 1, 0, 0, 1, 1], pytest.approx(18.05))
    for call in (metric.value, lambda: metric.increment(1), lambda: metric.set(1)):
        with pytest.raises(TritonModelException):
            call()


@pytest.mark.parametrize("buckets", [None, [2.5, 0.1], [1, 1, 2], [1, float("inf")], list(range(65))])
def test_buckets_must_be_there_and_ascend(buckets: list[float] | None) -> None:
    family = MetricFamily("h", "d", HISTOGRAM)
    with pytest.raises(TritonModelException, match="buckets"):
        family.Metric(labels={}, buckets=buckets)
    assert family.Metric(buckets=[]) is not None


def test_the_same_name_is_the_same_family_with_its_first_description_and_kind() -> None:
    first, second = MetricFamily("f", "first\n line", COUNTER), MetricFamily("f", "second", COUNTER)
    first.Metric(labels={"a": "b"}).increment(7.5)
    assert second.Metric(labels={"a": "b"}).value() == 7.5
    assert told("f").text == "first  line"
    with pytest.raises(TritonModelException, match="'f' is there already, and is a counter"):
        MetricFamily("f", "d", GAUGE)


@pytest.mark.parametrize("name", ["nv_inference_count", "serinus_x", "vllm:num", "", "1x", "a b", "a" * 129, "x{"])
def test_names_of_ours_and_impossible_ones_are_refused(name: str) -> None:
    with pytest.raises(TritonModelException, match=r"cannot begin with|no metric's name"):
        MetricFamily(name, "d", COUNTER)


@pytest.mark.parametrize(
    "labels",
    [{"le": "1"}, {"__x": "1"}, {"a-b": "1"}, {"a": 1}, {"a": "x\n"}, {"a": "\ud800"}, {"a": "ü" * 65}, ["a"],
     {f"l{number}": "" for number in range(9)}, {"exported_version": "1"}],
)  # fmt: skip
def test_labels_are_bounded(labels: Any) -> None:
    with pytest.raises(TritonModelException, match="label"):
        MetricFamily("f", "d", COUNTER).Metric(labels=labels)


def test_what_was_counted_while_it_was_warmed_up_is_forgotten() -> None:
    loads, last = MetricFamily("loads", "d", COUNTER).Metric(), MetricFamily("last", "d", GAUGE).Metric()
    sizes = MetricFamily("sizes", "d", HISTOGRAM).Metric(buckets=[1])
    loads.increment(1)
    sizes.observe(0.5)
    metrics.REGISTER.mark()
    late = MetricFamily("sizes", "d", HISTOGRAM).Metric({"a": "b"}, buckets=[1, 2])
    for one in (sizes, late):
        one.observe(3)
    loads.increment(5)
    last.set(7)
    metrics.REGISTER.rewind()
    assert (loads.value(), last.value()) == (1, 7)
    held = told("sizes").series
    assert [(one.value, one.counts) for one in held.values()] == [(0.5, [1, 0]), (0.0, [0, 0, 0])]
    late.observe(3)
    loads.increment(1)
    assert (loads.value(), told("sizes").series[("a", "b"),].counts) == (2, [0, 0, 1])


def test_families_and_series_are_bounded_and_what_was_counted_stays() -> None:
    family = MetricFamily("f", "d", COUNTER)
    for number in range(MAX_SERIES - 5):
        family.Metric(labels={"n": str(number)}).increment(1)
    wide = MetricFamily("h", "d", HISTOGRAM)
    with pytest.raises(TritonModelException, match="at most 1000 series"):
        wide.Metric(buckets=[1, 2, 3])
    wide.Metric(buckets=[1, 2])
    with pytest.raises(TritonModelException, match="at most 1000 series"):
        family.Metric()
    for number in range(MAX_FAMILIES - 2):
        MetricFamily(f"f{number}", "d", COUNTER)
    with pytest.raises(TritonModelException, match="at most 64 metric families"):
        MetricFamily("more", "d", COUNTER)
    del family
    assert told("f").series[("n", "3"),].value == 1
