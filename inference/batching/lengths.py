"""Which requests of different lengths run together where a batch is padded to its longest. Pure.

The law: the oldest always goes; whoever was passed over MAX_PASSED times goes next, so nobody is passed over for longer;
the rest of the batch is the run of similar lengths around the oldest that costs least for each element it does.
"""

from __future__ import annotations

from collections.abc import Sequence

from inference.batching.work import Ticket

MAX_PASSED = 4


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
    best, best_cost = (low, high), (rows * anchor.length + fixed_elements) / max(elements, 1)
    while (side := _nearer(ordered, low, high, max_rows - rows)) is not None:
        low, high = (low - 1, high) if side is ordered[low - 1] and low > 0 else (low, high + 1)
        rows += side.rows
        elements += side.elements
        cost = (rows * ordered[high].length + fixed_elements) / max(elements, 1)
        if cost <= best_cost:
            best, best_cost = (low, high), cost
    return ordered[best[0] : best[1] + 1]


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
