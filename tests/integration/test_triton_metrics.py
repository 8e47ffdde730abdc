"""Metrics that Python models keep themselves, as a scraper finds them: real replicas in their sandboxes behind a real gateway."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton_http

from tests.support import triton
from tests.support.exposition import scraped, value
from tests.support.gateway_house import until
from tests.support.triton_place import HEADERS, TritonPlace

CONFIG = """
backend: "python"
input [ { name: "A" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "B" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""
COUNTS = '''
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Counts and observes its input, which it answers."""

    def initialize(self, args):
        kinds = pb_utils.MetricFamily
        self.family = kinds(name="seen_ns", description="What was seen", kind=kinds.COUNTER)
        self.seen = self.family.Metric(labels={"model": "m", "version": "1", "say": 'a "b" \\\\ c'})
        self.last = kinds("last_seen", "The last of them", kinds.GAUGE).Metric()
        self.sizes = kinds("seen_size", "Sizes", kinds.HISTOGRAM).Metric(labels={"by": "size"}, buckets=[1, 2.5, 10])
        %s

    def execute(self, requests):
        answers = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "A")
            found = float(tensor.as_numpy()[0])
            self.seen.increment(abs(found))
            self.last.set(found)
            self.sizes.observe(found)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("B", tensor.as_numpy())]))
        return answers
'''
CLAIMS = 'kinds("seen_size_sum", "A line of a histogram", kinds.COUNTER).Metric().increment(3)'


@pytest.fixture(scope="module")
def place() -> Iterator[TritonPlace]:
    with tempfile.TemporaryDirectory(prefix="triton-") as name:
        work = Path(name)
        triton.put(work / "models", "counts", CONFIG, {"1/model.py": COUNTS % "pass"})
        claims = COUNTS.replace("seen_size", "other_size") % CLAIMS
        triton.put(work / "models", "zclaims", CONFIG, {"1/model.py": claims})
        found = TritonPlace(work, work / "models")
        yield found
        found.close()


def ask(place: TritonPlace, model: str, *values: float) -> None:
    for number in values:
        given = triton_http.InferInput("A", [1], "FP32")
        given.set_data_from_numpy(np.array([number], np.float32))
        place.http.infer(model, [given], request_id="r", headers=dict(HEADERS))  # it writes there


def of(place: TritonPlace, name: str, **labels: str) -> float:
    return value(scraped(place.gateway.get("/metrics").text), name, **labels)


def test_they_are_on_the_page_and_counters_do_not_fall_when_the_replica_is_killed(place: TritonPlace) -> None:
    ask(place, "counts", 1.0, 2.0, 7.5)
    line = 'seen_ns{endpoint="counts",version="1",model="m",say="a \\"b\\" \\\\ c",exported_version="1"} 10.5'
    until(lambda: line in place.gateway.get("/metrics").text, 20)
    text = place.gateway.get("/metrics").text
    for one in (
        "# HELP seen_ns What was seen",
        "# TYPE seen_ns counter",
        'last_seen{endpoint="counts",version="1"} 7.5',
        'seen_size_bucket{endpoint="counts",version="1",by="size",le="1"} 1',
        'seen_size_bucket{endpoint="counts",version="1",by="size",le="2.5"} 2',
        'seen_size_bucket{endpoint="counts",version="1",by="size",le="+Inf"} 3',
        'seen_size_sum{endpoint="counts",version="1",by="size"} 10.5',
        'seen_size_count{endpoint="counts",version="1",by="size"} 3',
    ):
        assert one in text.splitlines()
    place.restart("counts")
    until(lambda: of(place, "last_seen", endpoint="counts") != 7.5, 20)
    assert of(place, "seen_size_count") == 3
    until(lambda: place.gateway.get("/v2/models/counts/ready").status_code == 200, 20)
    ask(place, "counts", 4.0)
    until(lambda: line.replace("10.5", "14.5") in place.gateway.get("/metrics").text, 20)
    assert of(place, "seen_size_count", endpoint="counts") == 4


def test_a_name_keeps_its_first_meaning_and_the_other_model_loses_only_that(place: TritonPlace) -> None:
    ask(place, "zclaims", 2.0)
    until(lambda: of(place, "seen_ns_total", endpoint="zclaims") == 2, 20)  # so the parser calls a counter
    assert of(place, "other_size_count", endpoint="zclaims") == 1
    assert of(place, "seen_size_count", endpoint="counts") >= 0
    assert "seen_size_sum of ('zclaims', '1') is not shown" in place.gateway.log.read_text()
