"""The audit trail: one entry in the same transaction as each change."""

from __future__ import annotations

from typing import Any

from accounts.models import AuditEntry, Team
from accounts.permissions import Actor


def record(
    actor: Actor,
    verb: str,
    object_kind: str,
    object_name: str,
    *,
    team: Team | None = None,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    reason: str = "",
) -> AuditEntry:
    """Writes the entry. Must be called inside the transaction of the change it tells of."""
    return AuditEntry.objects.create(
        actor_kind=actor.kind,
        actor=actor.name,
        request_id=actor.request_id,
        verb=verb,
        object_kind=object_kind,
        object_name=object_name,
        team=team,
        before=before,
        after=after,
        reason=reason[:500],
    )
