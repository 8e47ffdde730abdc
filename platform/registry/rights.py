"""Who asks, and what they may know of."""

from __future__ import annotations

from accounts.models import User
from accounts.permissions import Actor, Verb, can, require
from inference.errors import NotFound
from registry.models import Model


def person_of(actor: Actor) -> User | None:
    """Who is behind the actor: the person, or whoever made the key."""
    return actor.user or (actor.key.created_by if actor.key else None)


def require_seen(actor: Actor, verb: Verb, model: Model) -> None:
    """What one may not see does not exist; what one may see but not do is forbidden."""
    if not can(actor, Verb.VIEW, model):
        raise NotFound(f"there is no model '{model.name}'")
    require(actor, verb, model)
