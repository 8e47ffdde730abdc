"""Counts what an executor did, in the words of `protocol.statistics`."""

from __future__ import annotations

import time

from inference.errors import SerinusError
from inference.protocol.statistics import MAX_RESPONSES, BatchStatistics, ModelStatistics, ResponseStatistics
from inference.runtime.runner import Ran
from inference.runtime.work import Ticket


class Counts:
    """The sums of one executor."""

    def __init__(self) -> None:
        self.statistics = ModelStatistics()

    def refused(self, error: SerinusError) -> SerinusError:
        """A request that never ran; gives `error` back to be raised or told."""
        rejected = self.statistics.rejected
        rejected[error.code] = rejected.get(error.code, 0) + 1
        self.statistics.fail.add(0)
        return error

    def passed(self, rows: int, ran: Ran) -> None:
        """One pass over `rows` rows is over."""
        sums = self.statistics
        sums.execution_count += 1
        sums.last_inference_ms = int(time.time() * 1e3)
        sums.padded_rows += ran.padded_rows
        sums.elements += ran.elements
        sums.padding_elements += ran.padding_elements
        size = sums.batches.setdefault(rows, BatchStatistics())
        for name, ns in stages(ran):
            getattr(size, name).add(ns)

    def answered(self, ticket: Ticket, began: float, now: float, ran: Ran) -> None:
        """`ticket`, whose pass began at `began`, has its outputs; `ran` holds the times of the whole pass."""
        sums = self.statistics
        sums.inference_count += ticket.rows
        sums.success.add(nanoseconds(now - ticket.arrived_at))
        sums.queue.add(nanoseconds(began - ticket.arrived_at))
        for name, ns in stages(ran):
            getattr(sums, name).add(ns)

    def response(self, place: int) -> ResponseStatistics:
        """Of the answer at `place` of its request; places that are too many to be told apart are counted nowhere."""
        if place >= MAX_RESPONSES:
            return ResponseStatistics()
        return self.statistics.responses.setdefault(place, ResponseStatistics())

    def failed(self, ticket: Ticket, now: float) -> None:
        self.statistics.fail.add(nanoseconds(now - ticket.arrived_at))


def stages(ran: Ran) -> tuple[tuple[str, int], ...]:
    return (("compute_input", ran.input_ns), ("compute_infer", ran.infer_ns), ("compute_output", ran.output_ns))


def nanoseconds(seconds: float) -> int:
    return max(0, int(seconds * 1e9))
