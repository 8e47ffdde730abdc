"""The life of a batch: OpenAI's statuses, and which may follow which."""

from __future__ import annotations

from django.db import models

from inference.errors import Conflict


class Status(models.TextChoices):
    VALIDATING = "validating", "Validating"
    FAILED = "failed", "Failed"
    IN_PROGRESS = "in_progress", "In progress"
    FINALIZING = "finalizing", "Finalizing"
    COMPLETED = "completed", "Completed"
    EXPIRED = "expired", "Expired"
    CANCELLING = "cancelling", "Cancelling"
    CANCELLED = "cancelled", "Cancelled"


MOVES: dict[str, frozenset[str]] = {
    Status.VALIDATING: frozenset({Status.FAILED, Status.IN_PROGRESS, Status.FINALIZING, Status.CANCELLING}),
    Status.IN_PROGRESS: frozenset({Status.FINALIZING, Status.CANCELLING, Status.FAILED}),
    Status.FINALIZING: frozenset({Status.COMPLETED, Status.EXPIRED, Status.FAILED}),
    Status.CANCELLING: frozenset({Status.CANCELLED, Status.FAILED}),
    Status.FAILED: frozenset(),
    Status.COMPLETED: frozenset(),
    Status.EXPIRED: frozenset(),
    Status.CANCELLED: frozenset(),
}
ACTIVE = tuple(status for status, after in MOVES.items() if after)
ENDED = tuple(status for status, after in MOVES.items() if not after)


def check_move(found: str, wanted: str) -> None:
    """Raises Conflict for a move that there is not."""
    if wanted not in MOVES[found]:
        raise Conflict(f"a batch that is {found.replace('_', ' ')} cannot become {wanted.replace('_', ' ')}")
