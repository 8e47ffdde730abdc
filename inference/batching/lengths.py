"""Which requests of different lengths run together where a batch is padded to its longest. Pure.

The law: the oldest always goes; whoever was passed over MAX_PASSED times goes next, so nobody is passed over for longer;
the rest of the batch is the largest run of similar lengths around the oldest that costs within SLACK of the cheapest for
each element that it does.
"""

from __future__ import annotations

from collections.abc import Sequence

from inference.runtime.work import Ticket

MAX_PASSED = 4
MIN_FIXED_ELEMENTS = 256.0  # small matrices run far below the machine's rate, whatever a straight line says
SLACK = 1.1


def pick(waiting: Sequence[Ticket], max_rows: int, fixed_elements: float) -> list[Ticket]:
    """The batch, of `waiting` in the order of their turns. fixed_elements: what a pass costs whatever it holds, in
    elements.
    """
    must = [ticket for ticket in waiting[1:] if ticket.passed >= MAX_PASSED]
    taken = _fitting([waiting[0], *must], max_rows)
    if len(taken) == 1:
        taken = _around(taken[0], waiting, max_rows, fixed_elements)
    _pass_over(waiting, taken)
    return taken


def _fitting(tickets: Sequence[Ticket], max_rows: int) -> list[Ticket]:
    taken, room = [tickets[0]], max_rows - tickets[0].rows
    for ticket in tickets[1:]:
        if ticket.rows > room:
            break
        taken.append(ticket)
        room -= ticket.rows
    return taken


def _around(anchor: Ticket, waiting: Sequence[Ticket], max_rows: int, fixed_elements: float) -> list[Ticket]:
    # Stable, so equal lengths keep the order of their turns.
    ordered = sorted(waiting, key=lambda ticket: ticket.length)
    at = ordered.index(anchor)
    low = high = at
    rows, elements = anchor.rows, anchor.elements
    fixed = max(fixed_elements, MIN_FIXED_ELEMENTS)
    runs = [(low, high, (rows * anchor.length + fixed) / max(elements, 1))]
    while (side := _nearer(ordered, low, high, max_rows - rows)) is not None:
        low, high = (low - 1, high) if low and side is ordered[low - 1] else (low, high + 1)
        rows += side.rows
        elements += side.elements
        runs.append((low, high, (rows * ordered[high].length + fixed) / max(elements, 1)))
    cheapest = min(cost for _, _, cost in runs)
    low, high, _ = next(run for run in reversed(runs) if run[2] <= SLACK * cheapest)
    return ordered[low : high + 1]


def _nearer(ordered: Sequence[Ticket], low: int, high: int, room: int) -> Ticket | None:
    """The neighbour of the run that is nearer in length and has room; None when neither has."""
    sides = [ordered[index] for index in (low - 1, high + 1) if 0 <= index < len(ordered)]
    sides = [ticket for ticket in sides if ticket.rows <= room]
    middle = ordered[low].length, ordered[high].length
    return min(sides, key=lambda t: min(abs(t.length - middle[0]), abs(t.length - middle[1])), default=None)


def _pass_over(waiting: Sequence[Ticket], taken: Sequence[Ticket]) -> None:
    gone = set(map(id, taken))
    last = max(ticket.rank for ticket in taken)
    for ticket in waiting:
        if id(ticket) not in gone and ticket.rank < last:
            ticket.passed += 1
