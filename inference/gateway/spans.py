"""Traces of single requests for OpenTelemetry: imported only where a collector is set, so the gateway goes without it.

A request's own span runs from the arrival of the whole request to its answer. Below it stand `admission` (key, limits,
queue bound, reading), `route` (choosing the replica, or waiting for one) and `replica` with `queue`, `assembly`,
`forward` and `encode`. Replicas have no network: the spans below `replica` are made here, out of the times in their
answers, with the way there and back taken as equally long. What a tensor holds is in no span.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from inference.errors import SerinusError
from inference.gateway.calls import Call
from inference.gateway.flights import Flight
from inference.protocol.messages import Answer

EXPORT_TIMEOUT_S = 5.0
_CONTEXT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


@dataclass(slots=True)
class Traced:
    """A request that is traced. admitted_ns: unix time when it had been read and let in."""

    span: Span
    admitted_ns: int


class Spans:
    """The traces of one gateway. samples: asked once a request for its endpoint's turn, as the live settings say.

    Spans wait in a bounded queue and are sent by a thread of their own; when the collector is away they are dropped.
    """

    def __init__(self, exporter: SpanExporter, *, service: str, samples: Callable[[str], bool]) -> None:
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create({"service.name": service}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("serinus")
        self._samples = samples

    def begin(self, flight: Flight, call: Call) -> None:
        """Decides whether this request is traced. If so the replica gets this span as its parent in `traceparent`."""
        endpoint = flight.endpoint.route.name
        if not self._samples(endpoint):
            return
        now, started = time.time_ns(), _unix_ns(flight.started)
        span = self._tracer.start_span(
            f"infer {endpoint}",
            parent_of(call.traceparent, call.tracestate),
            kind=SpanKind.SERVER,
            start_time=started,
            attributes={
                "serinus.endpoint": endpoint,
                "serinus.version": flight.variant.version,
                "serinus.arm": flight.variant.route.arm,
                "serinus.rows": call.rows,
            },
        )
        flight.trace = Traced(span, now)
        own = span.get_span_context()
        if f"{own.trace_id:032x}" not in call.traceparent:
            call.tracestate = ""  # it belongs to the context that could not be read
        call.traceparent = f"00-{own.trace_id:032x}-{own.span_id:016x}-01"

    def answered(self, flight: Flight, answer: Answer) -> None:
        """The request's final answer is here."""
        traced, flight.trace = flight.trace, None
        if not isinstance(traced, Traced):
            return
        now = time.time_ns()
        sent = max(traced.admitted_ns, _unix_ns(flight.sent))
        within = trace.set_span_in_context(traced.span)
        self._child("admission", within, _unix_ns(flight.started), traced.admitted_ns)
        self._child("route", within, traced.admitted_ns, sent)
        replica = self._tracer.start_span("replica", within, kind=SpanKind.CLIENT, start_time=sent)
        replica.set_attribute("serinus.batch_size", answer.batch_size)
        replica.set_attribute("serinus.cached", answer.is_cached)
        self._stages(trace.set_span_in_context(replica), sent, now, answer)
        replica.end(now)
        traced.span.set_attribute("serinus.retries", flight.retries)
        traced.span.end(now)

    def failed(self, flight: Flight, error: SerinusError) -> None:
        """The request ended with `error`."""
        traced, flight.trace = flight.trace, None
        if not isinstance(traced, Traced):
            return
        self._child("admission", trace.set_span_in_context(traced.span), _unix_ns(flight.started), traced.admitted_ns)
        traced.span.set_attribute("error.type", error.code)
        traced.span.set_attribute("serinus.retries", flight.retries)
        traced.span.set_status(Status(StatusCode.ERROR, error.message))
        traced.span.end()

    def close(self) -> None:
        """Sends what waits; blocks for a few seconds at most, so it belongs in a thread."""
        self._provider.shutdown()

    def _stages(self, within: Context, sent: int, now: int, answer: Answer) -> None:
        parts = {
            "queue": answer.queue_ns,
            "assembly": answer.input_ns,
            "forward": answer.compute_ns,
            "encode": answer.output_ns,
        }
        at = sent + max(0, now - sent - sum(parts.values())) // 2
        for name, took in parts.items():
            self._child(name, within, at, at + took)
            at += took

    def _child(self, name: str, within: Context, begin: int, end: int) -> None:
        self._tracer.start_span(name, within, start_time=begin).end(max(begin, end))


def open_spans(endpoint: str, *, service: str, samples: Callable[[str], bool]) -> Spans:
    """Spans that go to the OTLP/HTTP collector at `endpoint`, `/v1/traces` below it unless that is said."""
    url = endpoint if endpoint.endswith("/v1/traces") else f"{endpoint.rstrip('/')}/v1/traces"
    return Spans(OTLPSpanExporter(url, timeout=EXPORT_TIMEOUT_S), service=service, samples=samples)


def parent_of(traceparent: str, tracestate: str = "") -> Context:
    """The context that W3C's `traceparent` and `tracestate` name; an empty one, which begins a new trace, where the first
    is none.
    """
    found = _CONTEXT.fullmatch(traceparent)
    if found is None:
        return Context()
    flags = TraceFlags(int(found[3], 16))
    context = SpanContext(
        int(found[1], 16), int(found[2], 16), is_remote=True, trace_flags=flags,
        trace_state=TraceState.from_header([tracestate]),
    )  # fmt: skip
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


def _unix_ns(monotonic_s: float) -> int:
    return time.time_ns() - int((time.monotonic() - monotonic_s) * 1e9)
