"""The one way in which a version's status changes. Called through registry.actions."""

from __future__ import annotations

from inference.errors import Conflict
from registry.models import VERSION_MOVES, Version


def move(version: Version, new: str, **changes: object) -> None:
    """Compare-and-swap of the status. Raises Conflict when the move is not legal or somebody was faster."""
    if new not in VERSION_MOVES[version.status]:
        raise Conflict(f"{version} is {version.status}: it cannot become {new}")
    if not Version.objects.filter(pk=version.pk, status=version.status).update(status=new, **changes):
        raise Conflict(f"{version} is no longer {version.status}: read it again")
    version.refresh_from_db()
