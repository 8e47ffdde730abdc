"""One pass for all rows and never a second one, for models that keep state inside themselves."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from inference.errors import ModelFailed, SerinusError
from inference.runtime import tensors
from inference.runtime.runner import Ran, Runner
from inference.runtime.tensors import Arrays

log = logging.getLogger(__name__)


def run_whole(runner: Runner, requests: Sequence[Arrays]) -> Ran:
    """Each row's outputs, or one error for all: running parts again would move the model's own state a second time."""
    began, nonfinite = time.perf_counter_ns(), runner.measures.nonfinite
    try:
        stacked = tensors.stack(requests)
        stacked_at = time.perf_counter_ns()
        outputs = runner.run(stacked)
        ran_at = time.perf_counter_ns()
        results: Sequence[Arrays | SerinusError] = [outputs]
        if len(requests) > 1:
            results = tensors.split(outputs, [1] * len(requests))
        if runner.rejects_nonfinite:
            results = [runner.refused(one) for one in results]
    except SerinusError as error:
        return Ran([error for _ in requests])
    except Exception:
        log.exception("requests could not be put together")
        return Ran([ModelFailed() for _ in requests])
    ran = Ran(results, stacked_at - began, ran_at - stacked_at, time.perf_counter_ns() - ran_at)
    if runner.measures.nonfinite > nonfinite:
        ran.doubts = runner.is_nonfinite
    return ran
