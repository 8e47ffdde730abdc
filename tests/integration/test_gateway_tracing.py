"""OpenTelemetry spans of a real gateway process, caught by a collector of this test."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from inference.protocol.messages import Fault
from tests.support.gateway_house import House, until

CONTEXT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    data = gzip.decompress(data)
                assert self.path == "/v1/traces"
                collector.take(ExportTraceServiceRequest.FromString(data))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Not into the test's output."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def take(self, request: Any) -> None:
        for resource in request.resource_spans:
            self.services |= {
                one.value.string_value for one in resource.resource.attributes if one.key == "service.name"
            }
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


@pytest.fixture(scope="module")
def house(collector: Collector) -> Iterator[House]:
    found = House()
    found.replica(latency_s=0.02)
    gateway = found.gateway(SERINUS_OTEL_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="100")
    found.publish(found.table())
    gateway.wait_live().wait_ready()
    yield found
    found.close()


def trace(house: House, level: str = "TIMESTAMPS", **more: str) -> None:
    wanted = {"trace_level": [level], "trace_rate": "1", "trace_count": "-1"} | more
    assert house.gateways[0].post("/v2/trace/setting", json=wanted).status_code == 200


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}


def test_an_answered_request_has_its_stages_below_the_callers_span(house: House, collector: Collector) -> None:
    collector.spans.clear()
    trace(house)
    answer = house.gateways[0].post(headers={"traceparent": CONTEXT, "tracestate": "congo=t61,rojo=00f"})
    trace(house, "OFF")
    until(lambda: len(collector.spans) >= 8)
    spans = {span.name: span for span in collector.spans}
    assert set(spans) == {"infer mlp", "admission", "route", "replica", "queue", "assembly", "forward", "encode"}
    assert {span.trace_id.hex() for span in collector.spans} == {CONTEXT.split("-")[1]}
    top = spans["infer mlp"]
    assert top.parent_span_id.hex() == CONTEXT.split("-")[2]
    assert {spans[name].parent_span_id for name in ("admission", "route", "replica")} == {top.span_id}
    stages = [spans[name] for name in ("queue", "assembly", "forward", "encode")]
    assert {stage.parent_span_id for stage in stages} == {spans["replica"].span_id}
    lengths = [stage.end_time_unix_nano - stage.start_time_unix_nano for stage in stages]
    assert lengths == [1000, 500, 2000, 300]  # the fake replica's times
    assert spans["replica"].start_time_unix_nano <= stages[0].start_time_unix_nano
    assert stages[-1].end_time_unix_nano <= spans["replica"].end_time_unix_nano <= top.end_time_unix_nano
    assert spans["replica"].end_time_unix_nano - spans["replica"].start_time_unix_nano >= 20e6
    told = attributes(top)
    assert (told["serinus.endpoint"], told["serinus.version"], told["serinus.rows"]) == ("mlp", "1", 1)
    own = f"00-{top.trace_id.hex()}-{top.span_id.hex()}-01"
    seen = house.replicas["r1"].seen[-1]
    assert seen.traceparent == own == answer.headers["traceparent"]
    assert seen.tracestate == top.trace_state == "congo=t61,rojo=00f"
    assert collector.services == {"serinus"}


def test_a_failed_request_has_its_error(house: House, collector: Collector) -> None:
    collector.spans.clear()
    trace(house)
    house.replicas["r1"].fault = Fault(0, "model_failed", "it broke")
    try:
        assert house.gateways[0].post().status_code >= 500
    finally:
        house.replicas["r1"].fault = None
    trace(house, "OFF")
    until(lambda: any(span.name == "infer mlp" for span in collector.spans))
    top = next(span for span in collector.spans if span.name == "infer mlp")
    assert attributes(top)["error.type"] == "model_failed"
    assert (top.status.code, top.parent_span_id) == (2, b"")


def test_the_live_setting_says_which_requests_are_traced(house: House, collector: Collector) -> None:
    collector.spans.clear()
    gateway = house.gateways[0]
    for _ in range(4):
        gateway.post()  # off
    trace(house, trace_rate="3", trace_count="2")
    for _ in range(12):
        gateway.post()
    trace(house, "OFF")
    trace(house)
    marked = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-00"
    gateway.post(headers={"traceparent": marked})
    trace(house, "OFF")
    until(lambda: any(span.trace_id.hex() == "ab" * 16 for span in collector.spans))
    tops = [span for span in collector.spans if span.name == "infer mlp"]
    assert len(tops) == 3


@pytest.mark.parametrize("context", ["00-1-2-01", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "ff-" + "a" * 32 + "-" + "1" * 16 + "-01", "x"], ids=["short", "zeros", "version", "words"])  # fmt: skip
def test_a_context_that_is_none_begins_a_new_trace(house: House, collector: Collector, context: str) -> None:
    collector.spans.clear()
    trace(house)
    answer = house.gateways[0].post(headers={"traceparent": context, "tracestate": "congo=t61"})
    trace(house, "OFF")
    until(lambda: any(span.name == "infer mlp" for span in collector.spans))
    top = next(span for span in collector.spans if span.name == "infer mlp")
    assert (top.parent_span_id, top.trace_state, house.replicas["r1"].seen[-1].tracestate) == (b"", "", "")
    assert answer.headers["traceparent"].split("-")[1] == top.trace_id.hex()


def test_a_collector_that_is_away_harms_no_prediction() -> None:
    found = House()
    try:
        found.replica()
        gateway = found.gateway(SERINUS_OTEL_ENDPOINT="http://127.0.0.1:9", SERINUS_TRACE_EVERY="1")
        found.publish(found.table())
        gateway.wait_live().wait_ready()
        assert [gateway.post().status_code for _ in range(20)] == [200] * 20
        assert gateway.stop() == 0
    finally:
        found.close()


def test_a_bad_address_stops_the_start(tmp_path: Any) -> None:
    from inference.config import BadSetting, gateway_config

    for wrong in ("collector:4318", "ftp://x", "http://", "http://x/ y", "http://x?y"):
        with pytest.raises(BadSetting, match="SERINUS_OTEL_ENDPOINT"):
            gateway_config({"SERINUS_OTEL_ENDPOINT": wrong})
    assert gateway_config({"SERINUS_OTEL_ENDPOINT": "https://x:4318/base"}).otel_endpoint == "https://x:4318/base"
