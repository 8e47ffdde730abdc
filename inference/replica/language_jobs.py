"""A request to a language model on its way through a replica: how it is read, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from inference.errors import InvalidInput
from inference.protocol import generation
from inference.protocol.messages import BACKGROUND
from inference.replica.language_text import Prepared, from_parameters

if TYPE_CHECKING:
    import asyncio

    from inference.protocol.generation import Asked
    from inference.replica.language_answers import Answers
    from inference.runtime.work import Ticket


@dataclass(slots=True, eq=False)
class Job:
    """A request under way. adapter: the name it asked for; prepared: once its prompt is read; began: its first token
    (monotonic s).
    """

    ticket: Ticket
    is_oip: bool
    adapter: str = ""
    answers: Answers | None = None
    prepared: Prepared | None = None
    timer: asyncio.TimerHandle | None = None
    began: float = 0.0
    last: float = 0.0
    is_held: bool = False
    is_touched: bool = False

    def has_adapter(self, name: str, slot: int) -> bool:
        """Whether it began with this adapter."""
        return self.prepared.request.adapter == slot if self.prepared is not None else self.adapter == name


def asked_of(ticket: Ticket) -> Asked:
    """Raises InvalidInput for what is no request of ours."""
    if generation.REQUEST not in ticket.inputs:
        (given,) = ticket.inputs[generation.TEXT_INPUT].reshape(-1).tolist()
        try:
            found = from_parameters(given.decode(), ticket.parameters)
        except UnicodeDecodeError:
            raise InvalidInput("text_input is not UTF-8") from None
        later = generation.BACKGROUND if ticket.priority == BACKGROUND else 0
        return msgspec.structs.replace(found, priority=later)
    (packed,) = ticket.inputs[generation.REQUEST].reshape(-1).tolist()
    try:
        asked: Asked = generation.decode_asked(packed)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise InvalidInput(f"the request cannot be read: {error}") from None
    return asked
