"""Keeps a batcher's exact sums: one call a batch, so that counting costs next to nothing a request."""

from __future__ import annotations

import time
from collections.abc import Sequence

from inference.errors import SerinusError
from inference.protocol.statistics import BatchStatistics, ModelStatistics
from inference.runtime.runner import Ran
from inference.runtime.work import Ticket


class Tally:
    """What `ModelStatistics` promises, for one executor."""

    def __init__(self) -> None:
        self.sums = ModelStatistics()

    def ran(self, batch: Sequence[Ticket], began: float, now: float, ran: Ran) -> None:
        """A pass over `batch` ended; callers who left meanwhile are not in the sums of requests."""
        sums, rows = self.sums, sum([ticket.rows for ticket in batch])
        sums.execution_count += 1
        sums.last_inference_ms = int(time.time() * 1e3)
        sums.padded_rows += ran.padded_rows
        sums.elements += ran.elements
        if ran.elements:
            real = sum([ticket.elements for ticket in batch])
            sums.padding_elements += ran.padding_elements or max(0, ran.elements - real if real else 0)
        size = sums.batches.get(rows)
        if size is None:
            size = sums.batches[rows] = BatchStatistics()
        size.compute_input.add(ran.input_ns)
        size.compute_infer.add(ran.infer_ns)
        size.compute_output.add(ran.output_ns)
        self._requests(batch, began, now, ran)

    def _requests(self, batch: Sequence[Ticket], began: float, now: float, ran: Ran) -> None:
        sums, answered, rows, came_s = self.sums, 0, 0, 0.0
        for ticket, result in zip(batch, ran.results, strict=True):
            if ticket.has_ended:
                continue
            if isinstance(result, SerinusError):
                sums.fail.add(ns(now - ticket.arrived_at))
                continue
            answered += 1
            rows += ticket.rows
            came_s += ticket.arrived_at
        if not answered:
            return
        sums.inference_count += rows
        sums.success.add(ns(now * answered - came_s), answered)
        sums.queue.add(ns(began * answered - came_s), answered)
        sums.compute_input.add(ran.input_ns * answered, answered)
        sums.compute_infer.add(ran.infer_ns * answered, answered)
        sums.compute_output.add(ran.output_ns * answered, answered)

    def refused(self, error: SerinusError) -> SerinusError:
        """Counts a refusal by its reason and gives it back to be raised or told."""
        rejected = self.sums.rejected
        rejected[error.code] = rejected.get(error.code, 0) + 1
        self.sums.fail.add(0)
        return error


def ns(seconds: float) -> int:
    return max(0, int(seconds * 1e9))
