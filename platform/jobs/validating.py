"""The first step of a batch: all its lines are checked before any runs. Killed half-way, it begins anew."""

from __future__ import annotations

import logging

from django.db.models.functions import Now

from jobs import leases, lines, store
from jobs.leases import Held
from jobs.limits import MAX_ERRORS, MAX_LINES
from jobs.lines import Checker, Problem
from jobs.statuses import Status

RENEW_LINES = 1000
log = logging.getLogger(__name__)


def validate(held: Held) -> None:
    """1. Reads and checks every line, renewing the lease. 2. `in_progress`, or `failed` with what is wrong.

    Raises LeaseLost; Conflict when it was cancelled meanwhile.
    """
    checker = Checker(held.batch.endpoint)
    problems = _problems(held, checker)
    if problems:
        told = [problem.shown() for problem in problems]
        leases.move(held, Status.FAILED, errors=told, total=min(checker.count, MAX_LINES))
        return
    model = ", ".join(sorted(checker.models))[:200]
    leases.move(held, Status.IN_PROGRESS, total=checker.count, model=model, in_progress_at=Now())


def _problems(held: Held, checker: Checker) -> list[Problem]:
    batch, found = held.batch, []
    try:
        for line in lines.read(store.path_of(batch.input_file_name)):
            problem = checker.check(line)
            if problem is not None:
                found.append(problem)
                if len(found) >= MAX_ERRORS or problem.code == "too_many_requests":
                    return found
            if checker.count % RENEW_LINES == 0 and leases.renew(held) != Status.VALIDATING:
                return []
    except FileNotFoundError:
        return [Problem("invalid_file", f"The input file {batch.input_file_name} is gone: upload it again.")]
    if not checker.count:
        return [Problem("empty_file", "The input file holds no line.")]
    return found
