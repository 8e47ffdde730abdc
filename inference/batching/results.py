"""What each caller of a batch is told, from what the runner made of it: pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from inference.batching.ordering import Ended
from inference.errors import SerinusError
from inference.models.asked import said
from inference.runtime.runner import Ran
from inference.runtime.work import Arrays, Outcome, Scalar, Ticket


def results(
    batch: list[Ticket],
    ran: Ran,
    *,
    rows: int,
    began: float,
    took_ns: int,
    restore: Callable[[Arrays, int], Arrays] | None,
) -> list[Ended]:
    """The end of each ticket. rows: of the whole batch; began: monotonic s; took_ns: of the pass, where the runner did
    not measure it; restore: cuts a row's outputs back to its length.
    """
    infer_ns = ran.infer_ns or took_ns
    found: list[Ended] = []
    for ticket, result in zip(batch, ran.results, strict=True):
        if isinstance(result, SerinusError):
            found.append((ticket, result))
            continue
        outputs = restore(result, ticket.length) if restore else result
        waited_ns = int((began - ticket.arrived_at) * 1e9)
        ended = Outcome(
            outputs, rows, waited_ns, infer_ns, ran.input_ns, ran.output_ns, parameters=_told(ticket, result)
        )
        if ran.doubts is not None:
            ended.is_invalid = ran.doubts(ticket.wanted(outputs))
        found.append((ticket, ended))
    return found


def _told(ticket: Ticket, result: Arrays) -> Mapping[str, Scalar]:
    """What an answer says beside its outputs: the model's own words, or how many tokens its texts were, where a request
    asks for that.
    """
    if own := said(result):
        return own
    if not ticket.parameters or not ticket.elements or ticket.parameters.get("count_tokens") is not True:
        return {}
    return {"tokens": ticket.elements}
